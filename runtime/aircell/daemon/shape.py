"""What a sandbox is before it has a job: everything about it that cannot be changed afterwards.

Sandboxes of one shape are alike until they get their job, so that one can be made before it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aircell.spec import AUTO, LaunchRequest, Mount, SandboxSpec
from aircell.status import ImageInfo

_LATE = ("labels", "pull_policy", "startup_timeout", "stop_grace")
"""Fields of a spec that say nothing about the sandbox itself, or that it gets with its job."""

_OF_THE_SHELL = ("annotations", "mounts", "parse_isolation", "resources")
"""Fields besides that a fork of a zygote has from its shell."""
_OF_THE_POD = ("annotations", "cgroup_parent", "dns", "network", "runtime_handler", "security")
"""Fields that make a difference before there is a container; see ``PodPlan``."""


@dataclass(frozen=True)
class Source:
    """What is at the source of a mount right now. What is put in its place later is something else, though it has the
    same path; while it is mounted somewhere its number is not given to anything else."""

    device: int
    inode: int

    @classmethod
    def of(cls, mount: Mount) -> Source:
        """Raises OSError when there is nothing."""
        status = Path(mount.source).stat()
        return cls(status.st_dev, status.st_ino)


@dataclass(frozen=True, eq=False)
class Shape:
    """Equal to another when it has the same ``key``."""

    backend: str
    image: ImageInfo
    spec: SandboxSpec
    mounts: tuple[Mount, ...]
    """The worker's and the spec's, with sources of this node."""
    sources: tuple[Source, ...]
    """Of each mount."""
    runner: str
    """Source of the runner; empty for plain commands."""
    tenant: str
    """Whom it may serve: the uid that asked, and the registry credentials that it named."""
    learned: tuple[str, ...] = ()
    """Modules to be preloaded that nobody has named. No part of the key: a sandbox without them is only slower."""

    @classmethod
    def of(cls, request: LaunchRequest, image: ImageInfo, mounts: Iterable[Mount], uid: int) -> Shape:
        """The shape that a request of the user ``uid`` asks for. Raises OSError when the source of a mount is gone."""
        mounts = tuple(mounts)
        return cls(
            backend=request.backend,
            image=image,
            spec=request.spec if request.role == "parse" else _unshared(request.spec),
            mounts=mounts,
            sources=tuple(map(Source.of, mounts)),
            runner=request.job.runner,
            tenant=f"{uid}:{request.spec.registry_credentials or ''}",
        )

    @property
    def shared(self) -> bool:
        """Whether its jobs may be forks in one sandbox."""
        return self.spec.parse_isolation == "image"

    @cached_property
    def key(self) -> str:
        """The hash of all that sandboxes of this shape have in common."""
        parts = (
            self.backend,
            self.image.id,
            self.spec.model_dump(mode="json", exclude=set(_LATE)),
            [mount.model_dump(mode="json") for mount in self.mounts],
            [(source.device, source.inode) for source in self.sources],
            self.runner,
            self.tenant,
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def family(self) -> str:
        """The hash of all that sandboxes have in common that one zygote can be forked into."""
        return self._hash_without(*_OF_THE_SHELL)

    @cached_property
    def kin(self) -> str:
        """The hash of all that sandboxes have in common that can learn from each other what to preload."""
        return self._hash_without(*_OF_THE_SHELL, "preload")

    @property
    def learns(self) -> bool:
        """Whether modules that nobody has named are to be preloaded."""
        return AUTO in self.spec.preload

    def _hash_without(self, *fields: str) -> str:
        spec = self.spec.model_dump(mode="json", exclude={*_LATE, *fields})
        parts = (self.backend, self.image.id, spec, self.runner, self.tenant)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def pod(self) -> str:
        """The hash of all that sandboxes have in common which can be made of one prepared pod."""
        parts = (self.backend, self.spec.model_dump(mode="json", include=set(_OF_THE_POD)), self.tenant)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _unshared(spec: SandboxSpec) -> SandboxSpec:
    """Of what is no parse: it has a sandbox of its own, whatever its spec says of parsing."""
    return spec.model_copy(update={"parse_isolation": "file"})
