"""The contract of a backend. No behaviour, and no backend is imported here.

A backend turns a :class:`SandboxPlan` into a sandbox on one engine. It keeps no state that labels on the engine do
not hold too, so that any aircelld can take over from any other. ``stop`` and ``remove`` are idempotent. Every
method may raise :class:`~aircell.errors.EngineUnavailable`; what else it may raise is said with it.

Backends register under the entry point group ``aircell.backends``; the class is called with the mapping that
aircelld's configuration has under ``backends: <name>:``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from aircell.spec import Mount, SandboxSpec
from aircell.status import ExitStatus, ImageInfo, SandboxInfo

LABEL_PREFIX = "aircell.dev/"
LABEL_SANDBOX = LABEL_PREFIX + "sandbox"
"""On everything that we create, before it exists; its value is our id of the sandbox."""
LABEL_ZYGOTE = LABEL_PREFIX + "zygote"
"""On a sandbox that is a fork: the sandbox that it was forked from, whose pod it is in."""
LABEL_NODE = LABEL_PREFIX + "node"
"""Which aircelld made it (the hash of its state folder): two daemons on one engine leave each other's alone."""
LABEL_IMAGE = LABEL_PREFIX + "image"
"""Which image a sandbox is made of, whatever its tag means by now: ``repo@sha256:...`` where there is one."""


@dataclass(frozen=True)
class RegistryAuth:
    """Credentials for one registry, in memory only: they are in no repr."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class PullProgress:
    """Bytes so far; zero where the engine does not say."""

    done: int = 0
    total: int = 0
    message: str = ""


@dataclass(frozen=True)
class IdRange:
    """User and group ids of the node that a user namespace has for its own, in which they begin at 0."""

    start: int
    length: int = 2**16


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """What a backend needs for as much of a sandbox as can be made before its container."""

    id: str
    """Ours, unique, a valid file name and DNS label."""
    spec: SandboxSpec
    """Of what is made before the container, only ``network``, ``dns``, ``runtime_handler``, ``cgroup_parent``,
    ``security`` and ``annotations`` may make a difference."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    log_dir: str
    """A folder of this sandbox alone; the backend writes or links the container's log at ``log_dir/agent.log``
    where its engine lets it choose."""
    ids: IdRange | None = None
    """Ids of its user namespace; None is the node's own namespace."""


@dataclass(frozen=True, kw_only=True)
class SandboxPlan(PodPlan):
    """All that a backend needs: the spec, and what aircelld decided around it."""

    image: ImageInfo
    argv: Sequence[str]
    env: Mapping[str, str]
    """Complete: nothing of ``spec.env`` is to be added."""
    mounts: Sequence[Mount]
    """Complete: the run folder, the scratch folder, the spec's and the worker's; sources are paths of the node."""
    pod: str = ""
    """What :meth:`Backend.prepare` has made of it already, by the word that it returned; empty when nothing."""
    within: str = ""
    """The sandbox whose pod this one joins, as a shell: what is forked into it brings a /proc of its own, so the
    engine's is bare. Only with the same ``ids``, and where ``EngineInfo.user_namespaces`` has the handler."""
    bare_proc: bool = False
    """What is forked in it brings a /proc of its own, for which the kernel wants that the engine's is bare. Only with
    ``ids``."""


@dataclass(frozen=True)
class EngineInfo:
    """Who answers."""

    name: str
    version: str
    api_version: str
    runtime_handlers: tuple[str, ...] = ()
    """Empty where the engine does not say."""
    user_namespaces: frozenset[str] = frozenset()
    """Handlers that give a pod a user namespace of its own, and let containers join it; "" is the default one."""


class Backend(abc.ABC):
    """One engine."""

    name: ClassVar[str]

    @abc.abstractmethod
    def __init__(self, config: Mapping[str, object]) -> None:
        """Validates ``config`` (:class:`~aircell.errors.InvalidSpec`); opens nothing."""

    @abc.abstractmethod
    async def info(self) -> EngineInfo:
        """Asks the engine for its version: the cheapest proof that it is there."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Gives back every connection. Idempotent."""

    @abc.abstractmethod
    async def check(self, spec: SandboxSpec) -> None:
        """Raises :class:`~aircell.errors.UnsupportedSpec` for a field that cannot be enforced; makes nothing."""

    @abc.abstractmethod
    async def image(self, reference: str) -> ImageInfo | None:
        """The image on the node, or None. Never pulls."""

    @abc.abstractmethod
    async def images(self) -> list[ImageInfo]:
        """Every image on the node."""

    @abc.abstractmethod
    async def pull(
        self, reference: str, auth: RegistryAuth | None, progress: Callable[[PullProgress], None]
    ) -> ImageInfo:
        """Pulls. Raises an :class:`~aircell.errors.ImageError`, or ImagePullFailed when another try may succeed."""

    @abc.abstractmethod
    async def load(self, archive: BinaryIO, reference: str) -> ImageInfo:
        """Takes up the image ``reference`` from an archive as ``docker save`` makes it. Raises EngineError."""

    @abc.abstractmethod
    async def add_layer(self, base: ImageInfo, layer: Path, reference: str, paths: Mapping[str, str]) -> ImageInfo:
        """Makes the image ``reference``: ``base``, on the node, with the tar archive ``layer`` on top. ``paths`` are
        put in front of the variables of that name in the image's environment. Raises EngineError."""

    @abc.abstractmethod
    async def remove_image(self, reference: str) -> None:
        """Removes the image from the node. Idempotent."""

    @abc.abstractmethod
    async def image_folder(self) -> str:
        """Where on the node the engine keeps images: a folder whose file system they fill."""

    async def prepare(self, plan: PodPlan) -> str:
        """Makes what there can be of a sandbox without its container, and returns what ``SandboxPlan.pod`` is to be
        when ``create`` makes the rest, with the same id and a spec that differs only where it makes no difference;
        labels may be others. Optional: this one, for an engine where a sandbox is one thing, makes nothing and returns
        "". ``sandboxes`` lists it, ``remove`` removes it. Raises UnsupportedSpec or EngineError."""
        return ""

    @abc.abstractmethod
    async def create(self, plan: SandboxPlan) -> None:
        """Makes the sandbox and its one container, without starting it. When it raises, nothing is left behind
        that ``remove(plan.id)`` does not remove. Raises UnsupportedSpec or EngineError, and NotFound when what was
        prepared has ended."""

    @abc.abstractmethod
    async def start(self, sandbox: str) -> None:
        """Starts the container. Raises StartupFailed when the engine sees that the image lacks the interpreter, and
        NotFound. One that cannot be executed is seen too late for that: the container exits and its log says why."""

    @abc.abstractmethod
    async def wait(self, sandbox: str) -> ExitStatus:
        """Returns once the container has exited, or at once when it has already. Of a sandbox that does not exist
        it raises NotFound. Cancelling it disturbs nothing."""

    @abc.abstractmethod
    async def log_tail(self, sandbox: str, max_bytes: int = 8192) -> str:
        """The end of what the container's own stdout and stderr had, without the engine's framing."""

    @abc.abstractmethod
    async def stop(self, sandbox: str, grace: float) -> None:
        """TERM, then KILL after ``grace`` seconds; returns when nothing runs. Idempotent; unknown ids are fine."""

    @abc.abstractmethod
    async def remove(self, sandbox: str) -> None:
        """Removes all that ``create`` made, by force if need be. Idempotent; unknown ids are fine."""

    @abc.abstractmethod
    async def sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        """All of ours that carry every one of ``labels``, whatever their state, half-made ones included."""

    @abc.abstractmethod
    async def foreign_owner(self) -> str | None:
        """Who else manages sandboxes on this engine and would remove ours (a kubelet), or None."""
