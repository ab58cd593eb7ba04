"""aircelld's configuration: one YAML file (or TOML, by its suffix), every key optional.

``docs/aircelld.example.yaml`` explains each.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from aircell.autostart import CONFIG_FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from aircell.client import DEFAULT_SOCKET
from aircell.daemon.containerd_config import ContainerdConfig
from aircell.daemon.credentials import Credentials
from aircell.daemon.rights import RightsSettings
from aircell.errors import InvalidSpec
from aircell.policy import Policy
from aircell.spec import AbsolutePath, Model, Size

DEFAULT_FILE = Path(CONFIG_FILE)
"""Read when it exists and no other file is named."""
DEFAULT_STATE_DIR = "/var/lib/aircell"

_MAX_SOCKET_PATH = 107
_LONGEST_GATE = "/sandboxes/callback-0123456789ab/run/gate.sock"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _expanded(path_map: Mapping[str, str]) -> dict[str, str]:
    """``${NAME}`` in the targets stands for aircelld's own environment variable."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return {prefix: _VARIABLE.sub(value, target) for prefix, target in path_map.items()}


def _cri_alone() -> dict[str, dict[str, Any]]:
    return {"cri": {}}


class LogSettings(Model):
    """aircelld's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class WarmSettings(Model):
    """Sandboxes that are made before they are asked for."""

    enabled: bool = True
    min: Annotated[int, Field(ge=0)] = 1
    """Of each shape that is in use: at least so many."""
    max: Annotated[int, Field(ge=0)] = 4
    """Of each shape: at most so many, however many are wanted at a time."""
    pods: Annotated[int, Field(ge=0)] = 2
    """Of each kind of pod that no zygote makes needless: so many are prepared for cold starts."""
    idle_ttl: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which what nobody has wanted ends."""
    memory: Size = 2**30
    """Bytes that all of them may take."""

    @model_validator(mode="after")
    def _ordered(self) -> WarmSettings:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class ImageGcSettings(Model):
    """When images are removed that nobody asked to be removed; with neither limit none is."""

    unused_seconds: Annotated[float, Field(gt=0)] | None = None
    """How long an image stays after its last use."""
    keep: Annotated[int, Field(ge=0)] = 0
    """So many of the images used last stay longer than that."""
    disk_percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """A fuller disk costs the image that was not used for longest, and the next, until it is less full."""
    pinned: tuple[str, ...] = ()
    """References of images that are never removed, not even on request."""
    interval: Annotated[float, Field(gt=0)] = 300.0
    """Seconds between two looks."""


class ZygoteSettings(Model):
    """Interpreters that have imported all, and are forked for each warm sandbox, where engine and kernel can."""

    enabled: bool = True
    first_id: Annotated[int, Field(ge=2**16, lt=2**31)] = 0x70000000
    """Ids of the node from here on are Aircell's own, 65536 for each zygote. systemd's UIDS-GIDS.md leaves those from
    0x70000000 to 0x7FFE0000 free."""
    max: Annotated[int, Field(ge=1, le=2**12)] = 256
    """Zygotes at a time, those included that only wait for their last fork to end."""


class ResidentSettings(Model):
    """When a resident, in whose forks files are parsed, gives way to a new one."""

    files: Annotated[int, Field(gt=0)] = 10_000
    """After so many forks."""
    seconds: Annotated[float, Field(gt=0)] = 3600.0
    """After so long."""
    growth: Annotated[float, Field(gt=1)] = 2.0
    """Once it has so many times the memory that it had when it was ready."""


class TracingSettings(Model):
    """OpenTelemetry spans of each launch."""

    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Where an OTLP/HTTP receiver takes traces, such as http://127.0.0.1:4318/v1/traces; None sends none."""


class Config(Model):
    """Everything that one aircelld needs to know."""

    socket_path: AbsolutePath = DEFAULT_SOCKET
    socket_group: str | None = None
    """Members may use the socket, beside root. They can start anything that the policy permits."""
    state_dir: AbsolutePath = DEFAULT_STATE_DIR
    """Records and scratch folders of sandboxes, and the managed containerd's images. One aircelld per folder."""
    run_dir: AbsolutePath = "/run/aircell"
    """The managed containerd's sockets; emptied by a reboot, kept from everybody but root."""
    managed_containerd: bool = False
    """Run a private containerd, and let the backend ``cri`` use it."""
    containerd: dict[str, Any] = Field(default_factory=dict)
    """Settings of the managed containerd, see ``ContainerdConfig``."""
    backends: dict[str, dict[str, Any]] = Field(default_factory=_cri_alone)
    """Backend name to that backend's own settings."""
    beside_kubelet: bool = False
    """Use an engine although a kubelet owns sandboxes on it, and will remove ours."""
    policy: Policy = Policy()
    path_map: Annotated[dict[AbsolutePath, str], AfterValidator(_expanded)] = Field(default_factory=dict)
    """Prefixes of paths as workers see them, to the same folders' paths on this node."""
    registry_credentials: dict[str, Credentials] = Field(default_factory=dict)
    image_rights: RightsSettings = RightsSettings()
    """Who may use an image that is on the node already."""
    warm: WarmSettings = WarmSettings()
    image_gc: ImageGcSettings = ImageGcSettings()
    zygotes: ZygoteSettings = ZygoteSettings()
    residents: ResidentSettings = ResidentSettings()
    reap_interval: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two searches for leftovers."""
    idle_exit: Annotated[float, Field(gt=0)] | None = None
    """End after so many seconds without a sandbox or a client; None means never."""
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        for path in (self.socket_path, self.state_dir + _LONGEST_GATE):
            if len(path.encode()) > _MAX_SOCKET_PATH:
                raise ValueError(f"{path} is longer than a unix socket's path may be ({_MAX_SOCKET_PATH} bytes)")
        if self.socket_group and "worker_mounts" not in self.policy.model_fields_set:
            raise ValueError(
                "socket_group lets others than root ask for sandboxes: set policy.worker_mounts to the folders that "
                "they may have mounted, those of your DAG bundles"
            )
        self.containerd_config()
        return self

    def containerd_config(self) -> ContainerdConfig:
        """The managed containerd's settings, complete."""
        return ContainerdConfig(
            **{"root": f"{self.state_dir}/containerd", "state": f"{self.run_dir}/containerd", **self.containerd}
        )

    def node_id(self) -> str:
        """Which aircelld this is, for the engine's labels."""
        return hashlib.sha256(str(Path(self.state_dir).resolve()).encode()).hexdigest()[:12]


def load(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration in ``path``, or in the default file if there is one, under ``overrides``.

    Raises InvalidSpec naming the file and the key.
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    try:
        return Config.model_validate(_merged(_read(path) if path else {}, overrides))
    except ValidationError as error:
        raise InvalidSpec(
            f"{path or 'the command line'}: {explain(error)}.",
            hint="See docs/aircelld.example.yaml for every key.",
        ) from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, anything else is replaced."""
    both = {name: _merged(below[name], above[name]) for name in above if _mappings(above[name], below.get(name))}
    return {**below, **above, **both}


def _mappings(*values: object) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def explain(error: ValidationError) -> str:
    """A validation error in one line: each key with what is wrong with it."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False)
    )


def _read(path: Path) -> dict[str, Any]:
    parse: Callable[[str], Any] = tomllib.loads if path.suffix == ".toml" else yaml.safe_load
    try:
        content = parse(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise InvalidSpec(f"{path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidSpec(f"{path} holds no mapping.", hint="See docs/aircelld.example.yaml for every key.")
    return content
