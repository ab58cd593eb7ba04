"""What there is to know about a sandbox: its states, its exit, its image. Plain data, standard library only."""

from __future__ import annotations

import enum
import signal as signals
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class State(str, enum.Enum):
    """The life of a sandbox. A sandbox only moves forward, and may leave for EXITED or FAILED from anywhere."""

    QUEUED = "queued"
    """Accepted; nothing exists on the engine."""
    PULLING = "pulling"
    BUILDING = "building"
    """The image gets the requirements of the spec."""
    CREATING = "creating"
    """The pod sandbox and the container are being made; both may exist already."""
    STARTING = "starting"
    """The container runs; the agent is not ready."""
    RUNNING = "running"
    """The job's descriptors were handed over. From here on aircelld is not needed."""
    EXITED = "exited"
    """The job ended by itself or was stopped; ``exit`` says how."""
    FAILED = "failed"
    """The job never ran; ``error`` says why."""


@dataclass(frozen=True)
class ExitStatus:
    """How a job ended. Exit is data: no way of ending is an exception.

    Exactly one of ``code`` and ``signal`` is set, unless nobody could tell, when both are None.
    """

    code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    """The kernel killed at least one process of the sandbox for its memory limit."""
    reason: str = ""
    """One sentence for a human, empty when the code says it all."""

    @property
    def returncode(self) -> int:
        """As subprocess has it: the code, or minus the signal; -9 when nobody could tell."""
        if self.code is not None:
            return self.code
        return -self.signal if self.signal is not None else -int(signals.SIGKILL)

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> ExitStatus:
        known = {key: data[key] for key in ("code", "signal", "oom_killed", "reason") if key in data}
        return cls(**known)


@dataclass(frozen=True)
class ImageInfo:
    """An image on the node."""

    id: str
    """The engine's id, which a container can be made from."""
    reference: str
    """As it was asked for."""
    digest: str = ""
    """``repo@sha256:...`` where the engine knows one."""
    tags: tuple[str, ...] = ()
    size: int = 0
    """Bytes."""


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox as the engine sees it, found again by labels after any restart."""

    id: str
    """Ours: the label ``aircell.dev/sandbox``."""
    engine_id: str
    """The engine's: pod sandbox id or container id."""
    running: bool
    """The agent's container is running."""
    created_at: float
    """Seconds since the epoch."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    exit: ExitStatus | None = None
    """Set once the agent's container has exited."""
