"""airflow.cfg -> frozen Settings. The only module of the configuration that imports Airflow."""

from __future__ import annotations

import configparser
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow import __version__ as airflow_version
from airflow.configuration import conf, expand_env_var

from aircell import autostart
from aircell.errors import InvalidSpec
from aircell_airflow import resolve, yaml_file
from aircell_airflow.child_environment import child_environment
from aircell_airflow.provider_info import ENVIRONMENT, MAIN, NODE_OPTIONS, PARSE, SPEC_OPTIONS, TASK, Option
from aircell_airflow.resolve import Fields, Kind, Said

__all__ = ["PROCESS", "Settings", "child_environment", "hook", "load"]

PROCESS = "process"
"""The runtime that is stock Airflow."""
_OVERRIDING: dict[Kind, str] = {"task": TASK, "parse": PARSE}
FLAG: dict[Kind, str] = {"task": "task_execution_runtime", "parse": "dag_parsing_runtime"}
_APP: dict[Kind, str] = {"task": "airflow_task", "parse": "airflow_dag_parsing"}
_LISTS = frozenset({"preload"})
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """What airflow.cfg says for one kind of workload."""

    kind: Kind
    runtime: str
    """``process`` or the name of a backend."""
    runtime_source: str
    socket_path: str
    autostart: tuple[str, ...] | None
    """The command that starts an aircelld when none answers, or None."""
    fields: Fields = field(repr=False)
    """What the sections say about the sandbox, overriding section included."""


def load(kind: Kind) -> Settings:
    """Raises InvalidSpec, naming section and option, for an unknown option or a value of the wrong type."""
    main = _section(MAIN, NODE_OPTIONS + SPEC_OPTIONS)
    own = _section(_OVERRIDING[kind], SPEC_OPTIONS)
    socket_path = main["socket_path"].value
    wanted = _boolean(main["autostart"]) and os.geteuid() == 0
    fields = _defaults(kind) | _spec_fields(main) | _environment() | _spec_fields(own)
    resolve.check(fields)
    return Settings(
        kind=kind,
        runtime=main[FLAG[kind]].value,
        runtime_source=main[FLAG[kind]].source,
        socket_path=socket_path,
        autostart=autostart.command(socket_path) if wanted else None,
        fields=fields,
    )


def traces() -> bool:
    """Whether Airflow sends spans of its own; if not, what it says of a task's trace leads nowhere."""
    return conf.getboolean("traces", "otel_on", fallback=False)


def _defaults(kind: Kind) -> Fields:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {
        ("image",): Said(f"apache/airflow:{airflow_version}-python{python}", "default: the worker's own version"),
        ("labels", "app"): Said(_APP[kind], f"default of [{_OVERRIDING[kind]}] app"),
    }


def _section(section: str, options: tuple[Option, ...]) -> dict[str, Said]:
    """The options of a section that have a value. Raises InvalidSpec for one that nobody knows."""
    known = {option.name for option in options}
    written = _written(section)
    for name, said in written.items():
        if name not in known:
            hint = f"Options of this section: {', '.join(sorted(known))}."
            raise InvalidSpec(f"{said.source}: unknown option.", hint=hint)
        if name in FLAG.values() and not said.value:  # not its default, which would mean: run it on the worker
            hint = f"Say `{PROCESS}`, or name a backend, such as `cri` or `docker`."
            raise InvalidSpec(f"{said.source}: is empty, so nobody knows where this is to run.", hint=hint)
    defaults = {
        option.name: Said(option.default, f"default of [{section}] {option.name}")
        for option in options
        if option.default is not None and section == MAIN
    }
    return defaults | {name: said for name, said in written.items() if said.value}


def _written(section: str) -> dict[str, Said]:
    """What somebody wrote in a section, in airflow.cfg or (which wins) in the environment."""
    written: dict[str, Said] = {}
    if conf.has_section(section):
        try:
            items = conf.items(section)
        except configparser.InterpolationError as error:
            raise InvalidSpec(f"[{section}] {error.option}: {error.message}") from error
        written = {name: Said(expand_env_var(value).strip(), f"[{section}] {name}") for name, value in items}
    prefix = f"AIRFLOW__{section.upper()}__"
    for variable, value in os.environ.items():
        if variable.startswith(prefix):
            name = variable.removeprefix(prefix).lower()
            written[name] = Said(expand_env_var(value).strip(), f"[{section}] {name} (from {variable})")
    return written


def _spec_fields(section: Mapping[str, Said]) -> Fields:
    fields: Fields = {}
    for option in SPEC_OPTIONS:
        said = section.get(option.name)
        if said is None:
            continue
        if option.name == "volume_mount_yaml":
            fields |= _volumes(said)
        else:
            fields[tuple(option.field.split("."))] = Said(_typed(option, said), said.source)
    return fields


def _typed(option: Option, said: Said) -> Any:
    if option.type == "boolean":
        return _boolean(said)
    if option.name in _LISTS:
        return [part.strip() for part in said.value.split(",") if part.strip()]
    return said.value


def _boolean(said: Said) -> bool:
    try:
        return _BOOLEANS[said.value.lower()]
    except KeyError as error:
        raise InvalidSpec(f"{said.source}: {said.value!r} is neither True nor False") from error


def _volumes(said: Said) -> Fields:
    path = Path(said.value)
    content = yaml_file.read(path)
    if content is None:
        raise InvalidSpec(f"{said.source}: there is no file {path}")
    node = yaml_file.compose(path, content)
    if node is None:
        return {}
    located = yaml_file.locate(path, node, "volumes")
    return resolve.say({"volumes": located.value}, lambda at: located.where(at[1:]))


def _environment() -> Fields:
    return {("env", name.upper()): said for name, said in _written(ENVIRONMENT).items()}


def hook(name: str) -> Callable[..., Any] | None:
    """A function of ``airflow_local_settings``, or None when there is none. Raises InvalidSpec when it cannot load."""
    try:
        module = importlib.import_module("airflow_local_settings")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "airflow_local_settings":
            return None
        raise InvalidSpec(f"airflow_local_settings, for {name}: {type(error).__name__}: {error}") from error
    found: Callable[..., Any] | None = getattr(module, name, None)
    return found
