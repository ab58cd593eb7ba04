"""From what several places say to one SandboxSpec, with where each value came from. Pure: no I/O, no Airflow.

What a place says is a mapping of *paths* (``("resources", "memory")``, ``("env", "TZ")``, ``("mounts", "/data")``) to
:class:`Said`. Layers merge by union of those mappings, lowest first: maps and mounts merge by key, everything else
replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aircell.errors import InvalidSpec
from aircell.spec import Model, SandboxSpec

Kind = Literal["task", "parse"]
Path: TypeAlias = tuple[str, ...]
Where: TypeAlias = Callable[[Path], str]
"""Says where the value at a path was written, for people: ``/dags/etl.yaml:4``."""

BUILT_IN = "built-in default"
_ALIASES = {"environment": "env", "volumes": "mounts"}
"""AIP-46's names of our fields."""
_MAX_MESSAGE = 300
"""Characters: what is wrong may quote a value that an author wrote, of any length."""


@dataclass(frozen=True)
class Said:
    """A value and the place that says it."""

    value: Any
    source: str


Fields: TypeAlias = dict[Path, Said]


def _defaults() -> dict[str, Any]:
    fields = SandboxSpec.model_fields.items()
    return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


_DEFAULTS = _defaults()
_MAPS = frozenset(name for name, value in _DEFAULTS.items() if isinstance(value, Model | dict))


def say(values: Mapping[str, Any], where: Where) -> Fields:
    """What one place says, from the nested form that people write. Raises InvalidSpec for a shape that cannot be."""
    fields: Fields = {}
    written: dict[str, str] = {}
    for key, value in values.items():
        name = _ALIASES.get(key, key)
        if name in written:
            raise InvalidSpec(f"{where((key,))}: {key}: the same as {written[name]}, which is set too")
        written[name] = key
        if name == "mounts":
            fields |= _say_mounts(key, value, where)
        elif name in _MAPS:
            if not isinstance(value, Mapping):
                raise InvalidSpec(f"{where((key,))}: {key}: must be a mapping, not {_show(value)}")
            fields |= {(name, str(part)): Said(inner, where((key, str(part)))) for part, inner in value.items()}
        else:
            fields[(name,)] = Said(value, where((key,)))
    return fields


def _say_mounts(key: str, value: Any, where: Where) -> Fields:
    if not isinstance(value, list | tuple):
        raise InvalidSpec(f"{where((key,))}: {key}: must be a list, not {_show(value)}")
    fields: Fields = {}
    for index, entry in enumerate(value):
        source = where((key, str(index)))
        mount = _short_mount(entry) if isinstance(entry, str) else entry
        if not isinstance(mount, Mapping) or not isinstance(mount.get("target"), str):
            raise InvalidSpec(
                f"{source}: {key}[{index}]: {_show(entry)} is not a mount.",
                hint="Write SOURCE:TARGET, SOURCE:TARGET:ro, SOURCE:TARGET:rw, or a mapping with source and target.",
            )
        path = ("mounts", str(PurePosixPath(mount["target"])))
        if path in fields:
            raise InvalidSpec(f"{source}: {key}[{index}]: {mount['target']} is mounted by {fields[path].source} too")
        fields[path] = Said(dict(mount), source)
    return fields


def _short_mount(text: str) -> dict[str, Any] | None:
    """``a:b[:ro|rw]``; None when it is not that. Read-only unless it says otherwise."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts) or parts[2:] not in ([], ["ro"], ["rw"]):
        return None
    return {"source": parts[0], "target": parts[1], "read_only": parts[2:] != ["rw"]}


def build(layers: Iterable[Fields]) -> tuple[SandboxSpec, dict[str, str]]:
    """The spec that the layers (lowest first) add up to, and the source of every dotted field of it.

    Raises InvalidSpec with the place and the key of every value that is wrong.
    """
    fields: Fields = {}
    for layer in layers:
        fields |= layer
    targets = [path for path in fields if path[0] == "mounts"]
    nested: dict[str, Any] = {"mounts": [fields[path].value for path in targets]}
    for path, said in fields.items():
        if path[0] in _MAPS:
            nested.setdefault(path[0], {})[path[1]] = said.value
        elif path[0] != "mounts":
            nested[path[0]] = said.value
    try:
        spec = SandboxSpec.model_validate(nested)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise InvalidSpec("; ".join(_explain(detail, fields, targets) for detail in details)) from error
    values = dotted_values(spec)
    for path, said in fields.items():
        dotted = ".".join(path)
        if isinstance(said.value, bool) and not isinstance(values[dotted], bool):  # pydantic takes True as 1
            raise InvalidSpec(f"{said.source}: {dotted}: must not be true or false")
    return spec, dict.fromkeys(values, BUILT_IN) | {".".join(path): said.source for path, said in fields.items()}


def check(fields: Fields) -> None:
    """Raises InvalidSpec when something that one place says cannot be right, whatever the other places say."""
    build([{("image",): Said("unnamed", BUILT_IN)}, fields])


def _explain(detail: ErrorDetails, fields: Fields, targets: list[Path]) -> str:
    """One sentence: place, key, what is wrong with it."""
    loc = detail["loc"]
    path: Path = tuple(str(part) for part in loc)
    if len(loc) > 1 and loc[0] == "mounts":
        path = targets[int(loc[1])] + path[2:]
    message = detail["msg"].removeprefix("Value error, ")[:_MAX_MESSAGE]
    if detail["type"] == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(_siblings(path))}"
    elif detail["type"] == "missing" and path == ("image",):
        return "no image: name one in [sandbox_runtime] image or in the metadata YAML beside the DAG file"
    elif not path:
        path = next((target for target in targets if target[1] in message), ())
    said = [fields[path[:end]].source for end in range(len(path), 0, -1) if path[:end] in fields]
    below = sorted({said.source for known, said in fields.items() if path and known[: len(path)] == path})
    source = said[0] if said else ", ".join(below) or "sandbox settings"
    return f"{source}: {'.'.join(path)}: {message}"


def _siblings(path: Path) -> list[str]:
    if path[0] == "mounts":
        return ["source", "target", "read_only"]
    model = _DEFAULTS[path[0]] if len(path) > 1 else SandboxSpec
    return list(type(model).model_fields if isinstance(model, Model) else SandboxSpec.model_fields)


def dotted_values(spec: SandboxSpec) -> dict[str, Any]:
    """Every value of a spec under its dotted name, in the spec's own order; empty maps and no mounts are left out."""
    found: dict[str, Any] = {}
    for name, value in spec.model_dump(mode="json").items():
        if name == "mounts":
            found |= {f"mounts.{mount['target']}": mount for mount in value}
        elif name in _MAPS:
            found |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            found[name] = value
    return found


def changed(before: SandboxSpec, after: SandboxSpec, source: str, sources: Mapping[str, str]) -> dict[str, str]:
    """The sources of ``after``, which came from ``before`` by a hook that ``source`` names."""
    old, new = dotted_values(before), dotted_values(after)
    return {name: source if name not in old or old[name] != value else sources[name] for name, value in new.items()}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
