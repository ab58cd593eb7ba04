"""Policy: what a node permits. It refuses, naming field, value and remedy; it never trims a request to fit.

Everything here is pure: sources of mounts are compared as they are given, so whoever calls must have mapped and
resolved them (symbolic links included) first, see ``aircell.daemon.paths``.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from aircell.errors import RefusedByPolicy
from aircell.spec import AbsolutePath, Model, Mount, Resources, SandboxSpec, Size

RESERVED_LABELS = ("aircell.dev/", "io.kubernetes.", "io.cri-containerd", "io.containerd.")
"""Prefixes by which engines, kubelets and aircelld itself tell what belongs to whom."""


class MountRule(Model):
    """A folder of the node, with all that is below it, that a DAG author may mount."""

    path: AbsolutePath
    writable: bool = False


class Maximum(Model):
    """The most that one sandbox may ask for. Where there is a maximum, asking for no limit is refused too."""

    cpus: float | None = None
    memory: Size | None = None
    pids: int | None = None
    shm: Size | None = None
    scratch: Size | None = None


class Policy(Model):
    """What this node permits. Patterns are shell patterns (``*``, ``?``, ``[...]``) on the whole value."""

    images: tuple[str, ...] = ("*",)
    requirements: Literal["none", "wheels", "any"] = "wheels"
    """What may be installed on top of an image at an author's wish. ``wheels`` are unpacked and run nothing; ``any``
    also builds packages from source, whose code then sees how pip reaches this node's package index."""
    pull_policies: tuple[Literal["always", "missing", "never"], ...] = ("always", "missing", "never")
    users: tuple[str, ...] = ("*",)
    root: bool = False
    """Whether the sandbox may run as uid 0. A name that the image maps to uid 0 is refused when it shows."""
    networks: tuple[Literal["none", "host", "pod"], ...] = ("none", "pod")
    profiles: tuple[Literal["restricted", "baseline"], ...] = ("restricted",)
    capabilities: tuple[str, ...] = ()
    seccomp: tuple[str, ...] = ("runtime-default",)
    apparmor: tuple[str, ...] = ("runtime-default",)
    mounts: tuple[MountRule, ...] = ()
    """For mounts that a DAG author asks for."""
    worker_mounts: tuple[AbsolutePath, ...] = ("/",)
    """Folders below which a worker may mount DAG bundles, read-only."""
    protected: tuple[AbsolutePath, ...] = ("/proc", "/sys", "/dev", "/run", "/boot")
    """Folders that no worker may mount, nor anything above or below them: they hold the engines' sockets.
    aircelld's own state folder always counts as protected."""
    max_resources: Maximum = Maximum()
    runtime_handlers: tuple[str, ...] = ("*",)
    cgroup_parents: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    parse_isolations: tuple[Literal["file", "image"], ...] = ("file", "image")
    """``image`` lets the DAG files of one image and bundle be parsed in one sandbox."""
    annotations: tuple[str, ...] = ()
    """Names of annotations; some change what a low-level runtime does, so none is permitted unless named here."""

    def check(self, spec: SandboxSpec) -> None:
        """Raises RefusedByPolicy for the first field that this node does not permit."""
        security = spec.security
        _require("image", spec.image, self.images, "policy.images")
        _require("pull_policy", spec.pull_policy, self.pull_policies, "policy.pull_policies")
        self._check_requirements(spec)
        self._check_user(spec)
        _require("network", spec.network, self.networks, "policy.networks")
        _require("security.profile", security.profile, self.profiles, "policy.profiles")
        for capability in security.add_capabilities:
            _require("security.add_capabilities", capability, self.capabilities, "policy.capabilities")
        _require("security.seccomp", security.seccomp, self.seccomp, "policy.seccomp")
        _require("security.apparmor", security.apparmor, self.apparmor, "policy.apparmor")
        _require("runtime_handler", spec.runtime_handler, self.runtime_handlers, "policy.runtime_handlers")
        _require("parse_isolation", spec.parse_isolation, self.parse_isolations, "policy.parse_isolations")
        _require("cgroup_parent", spec.cgroup_parent, self.cgroup_parents, "policy.cgroup_parents")
        for device in spec.devices:
            _require("devices", device, self.devices, "policy.devices")
        for name in spec.annotations:
            _require("annotations", name, self.annotations, "policy.annotations")
        _check_labels(spec)
        self._check_resources(spec.resources)

    def check_mounts(self, mounts: Iterable[Mount]) -> None:
        """The same for the mounts that a DAG author asks for, with resolved sources."""
        for mount in mounts:
            rules = [rule for rule in self.mounts if _is_below(mount.source, rule.path)]
            if not rules:
                raise _refusal("mounts", mount.source, "policy.mounts", [rule.path for rule in self.mounts])
            if not mount.read_only and not any(rule.writable for rule in rules):
                raise RefusedByPolicy(
                    f"mounts: {mount.source} may not be mounted writable on this node.",
                    hint=f"Mount it read-only, or set `writable: true` at {rules[0].path} in `policy.mounts` of "
                    "aircelld's configuration.",
                )

    def check_worker_mounts(self, mounts: Iterable[Mount], protected: Iterable[str] = ()) -> None:
        """The same for the mounts that a worker vouches for; ``protected`` adds to the policy's own."""
        barred = (*self.protected, *protected)
        for mount in mounts:
            if not mount.read_only:
                raise RefusedByPolicy(
                    f"the worker's mount of {mount.source} is writable, and only read-only ones are permitted.",
                    hint="Ask for a writable mount in the sandbox's own `mounts`, where `policy.mounts` rules.",
                )
            if not any(_is_below(mount.source, prefix) for prefix in self.worker_mounts):
                raise _refusal("the worker's mount", mount.source, "policy.worker_mounts", self.worker_mounts)
            for path in barred:
                if _is_below(mount.source, path) or _is_below(path, mount.source):
                    raise RefusedByPolicy(
                        f"the worker's mount of {mount.source} would show {path}, which is protected on this node.",
                        hint="Move the DAG bundle elsewhere, or change `policy.protected` of aircelld's configuration.",
                    )

    def _check_requirements(self, spec: SandboxSpec) -> None:
        if spec.requirements and self.requirements == "none":
            raise RefusedByPolicy(
                "requirements: nothing may be installed on top of an image on this node.",
                hint="Name an image that has it, or set `policy.requirements: wheels` in aircelld's configuration.",
            )

    def _check_user(self, spec: SandboxSpec) -> None:
        if not self.root and (spec.user == "root" or (spec.user.isdecimal() and int(spec.user) == 0)):
            raise self.root_refused(spec.user)
        _require("user", spec.user, self.users, "policy.users")

    @staticmethod
    def root_refused(user: str) -> RefusedByPolicy:
        """The refusal of a user that is uid 0."""
        return RefusedByPolicy(
            f"user: {user!r} is uid 0, and running as root is not permitted on this node.",
            hint="Name another user of the image, or set `policy.root: true` in aircelld's configuration.",
        )

    def _check_resources(self, resources: Resources) -> None:
        for name, maximum in self.max_resources:
            wanted = getattr(resources, name)
            if maximum is not None and (wanted is None or wanted > maximum):
                asked = "no limit" if wanted is None else wanted
                raise RefusedByPolicy(
                    f"resources.{name}: {asked} is more than this node permits ({maximum}).",
                    hint=f"Ask for at most {maximum}, or raise `policy.max_resources.{name}` in aircelld's "
                    "configuration.",
                )


def _require(field: str, value: str | None, allowed: Iterable[str], setting: str) -> None:
    if value is not None and not any(fnmatchcase(value, pattern) for pattern in allowed):
        raise _refusal(field, value, setting, allowed)


def _refusal(field: str, value: str, setting: str, allowed: Iterable[str]) -> RefusedByPolicy:
    permitted = ", ".join(allowed) or "none at all"
    return RefusedByPolicy(
        f"{field}: {value!r} is not permitted on this node (permitted: {permitted}).",
        hint=f"Choose another, or add it to `{setting}` in aircelld's configuration.",
    )


def _check_labels(spec: SandboxSpec) -> None:
    for name in spec.labels:
        if name.startswith(RESERVED_LABELS):
            raise RefusedByPolicy(
                f"labels: {name!r} begins with a reserved prefix ({', '.join(RESERVED_LABELS)}).",
                hint="Choose another name for the label.",
            )


def _is_below(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
