"""SandboxSpec: what a sandbox is, for every backend. Frozen, validated, no I/O.

Defaults are Kubernetes' *restricted* Pod Security Standard, see
https://kubernetes.io/docs/concepts/security/pod-security-standards/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aircell.requirements import MAX_LINES, problem

RUN_DIR = "/run/aircell"
"""Where the agent, the runner and the gate socket appear in the sandbox, read-only."""

SCRATCH_DIR = "/tmp"  # noqa: S108 - the path inside the sandbox, private to it
"""Where the sandbox may write."""

AUTO = "auto"
"""Among the modules of ``preload``: those besides that turn out to be worth it."""

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*$", re.IGNORECASE)
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]*$")


def parse_size(value: object) -> object:
    """Bytes from ``512Mi``, ``1.5G`` or a whole number; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        match = _SIZE.match(value)
        if match is None:
            raise ValueError(f"{value!r} is not a size; write for example 512Mi, 2Gi or a number of bytes")
        size = float(match[1]) * _SUFFIX[(match[2] or "").lower()]
        if size >= 2**63:
            raise ValueError(f"{value:.40} is more than any machine has")
        return int(size)
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or ".." in PurePosixPath(value).parts:
        raise ValueError(f"{value!r} must be an absolute path without '..'")
    return str(PurePosixPath(value))


def _modules(value: object) -> object:
    return (AUTO,) if value == AUTO else value


def _env_names(value: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in value.items():
        if not _ENV_NAME.match(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL byte")
    return value


def _requirement(value: str) -> str:
    if wrong := problem(value):
        raise ValueError(wrong)
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, lt=2**63)]
"""A number of bytes; ``512Mi`` and the like are accepted."""
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Requirement = Annotated[str, AfterValidator(_requirement)]
Modules = Annotated[tuple[str, ...], BeforeValidator(_modules)]
"""Their names; ``auto`` alone is accepted."""
Environment = Annotated[dict[str, str], AfterValidator(_env_names)]
Labels = dict[str, str]


class Model(BaseModel):
    """Frozen; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mount(Model):
    """A folder or file of the node, seen in the sandbox. ``source`` is a path in the requester's view."""

    source: AbsolutePath
    target: AbsolutePath
    read_only: bool = True


class Resources(Model):
    """Limits; None means that the engine sets none."""

    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    memory: Size | None = 2 * 2**30
    pids: Annotated[int, Field(gt=0, lt=2**63)] | None = 512
    shm: Size | None = None
    """Size of /dev/shm in bytes."""
    scratch: Size | None = None
    """Bytes that may be written below /tmp. A bounded scratch is kept in memory and counts towards ``memory``."""


class Dns(Model):
    """Resolver settings; empty means the engine's own."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Security(Model):
    """What the processes in the sandbox may do.

    ``restricted`` drops every capability; ``baseline`` keeps the engine's default set. Both run without new
    privileges. ``add_capabilities`` come on top (names without ``CAP_``).
    """

    profile: Literal["restricted", "baseline"] = "restricted"
    add_capabilities: tuple[str, ...] = ()
    seccomp: Annotated[str, Field(pattern=r"^(runtime-default|unconfined|localhost/.+)$")] = "runtime-default"
    apparmor: Annotated[str, Field(pattern=r"^(runtime-default|unconfined|localhost/.+)$")] | None = None
    read_only_root: bool = True


class SandboxSpec(Model):
    """One sandbox, complete. See ``docs/metadata.md`` for each field as a user writes it."""

    image: Annotated[str, Field(min_length=1)]
    pull_policy: Literal["always", "missing", "never"] = "missing"
    registry_credentials: str | None = None
    """Name of credentials that aircelld's configuration holds; never the credentials themselves."""
    requirements: Annotated[tuple[Requirement, ...], Field(max_length=MAX_LINES)] = ()
    """What pip is to add to the image, a requirement each; aircelld makes that image once, see ``docs/metadata.md``."""
    python: str = "python3"
    """The interpreter in the image: a name on its PATH or an absolute path."""
    preload: Modules = ()
    """Modules imported before the job is known; ``auto`` stands for those that DAG files were slow to import."""
    env: Environment = Field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    resources: Resources = Resources()
    user: str = "50000"
    """Name (resolved in the image) or number. 50000 is the ``airflow`` user of Airflow's own images."""
    group: int | None = 0
    """Primary group; None takes the image's. 0 as Airflow's own images (and OpenShift) use it."""
    groups: tuple[int, ...] = ()
    """Supplementary groups."""
    network: Literal["none", "host", "pod"] = "none"
    dns: Dns = Dns()
    security: Security = Security()
    runtime_handler: str | None = None
    """Low-level runtime by the engine's own name for it (runc, crun, runsc, kata); None is the engine's default."""
    cgroup_parent: str | None = None
    devices: tuple[str, ...] = ()
    """CDI device names, ``vendor.com/class=name``."""
    parse_isolation: Literal["file", "image"] = "file"
    """What a DAG file is parsed in: a sandbox of its own, or a fork in one that it shares with other files of the same
    spec (a *resident*, see ``docs/parsing.md``). Without effect on anything but parsing."""
    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)
    startup_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Seconds from an image on the node to a runner that is ready; pulling does not count."""
    stop_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """Seconds between TERM and KILL."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_names(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("user"), int):
            return {**data, "user": str(data["user"])}
        return data

    @model_validator(mode="after")
    def _targets_are_free(self) -> SandboxSpec:
        taken: set[str] = set()
        for mount in self.mounts:
            if mount.target in taken:
                raise ValueError(f"two mounts want {mount.target}")
            if mount.target == "/" or PurePosixPath(mount.target).is_relative_to(RUN_DIR):
                raise ValueError(f"nothing may be mounted at {mount.target}")
            taken.add(mount.target)
        return self


class Job(Model):
    """What a sandbox runs, once: an Airflow runner (Python source that the agent loads) or a plain command."""

    kind: Literal["runner", "exec"]
    runner: str = ""
    """Source of a module with ``describe()``, ``preload()`` and ``run(...)``; see ``aircell/agent.py``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Handed to the runner's ``run``."""
    argv: tuple[str, ...] = ()
    """The command, for ``exec``."""
    env: Environment = Field(default_factory=dict)
    """Late environment: known at hand-over, not when the sandbox is made."""

    @model_validator(mode="after")
    def _complete(self) -> Job:
        if (self.kind == "exec") != bool(self.argv) or (self.kind == "runner") != bool(self.runner):
            raise ValueError("an exec job has argv, a runner job has runner, and neither has the other's")
        return self


class LaunchRequest(Model):
    """What a worker asks of aircelld, beside the five descriptors."""

    backend: str = "cri"
    spec: SandboxSpec
    job: Job
    role: Literal["task", "parse", "callback", "run", "build"] = "run"
    mounts: tuple[Mount, ...] = ()
    """Read-only mounts that the worker itself vouches for (the DAG bundle). Only the worker's own code may fill
    this; what a DAG author asks for is in ``spec.mounts`` and is subject to the policy's allow-list."""
    traceparent: Annotated[str, Field(pattern=r"^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")] = ""
    """Below which span those of the sandbox belong, as W3C Trace Context has it; empty for a trace of its own."""
    labels: Labels = Field(default_factory=dict)
    """Identity: dag, task, run, try; prefixed with ``aircell.dev/`` by aircelld."""
