"""What one engine can do, and what a spec therefore becomes on it, or why it cannot. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from aircell.backends.cri.config import CriConfig
from aircell.backends.cri.translate import Placement
from aircell.errors import UnsupportedSpec
from aircell.spec import SandboxSpec
from aircell_cri.v1 import api_pb2 as cri

NONE_SUFFIX = "-none"
"""A handler whose name ends so has no network but loopback. aircelld's own containerd has one for each (see
``daemon/containerd_config.py``); on another's the operator makes them, see ``docs/containerd.md``."""


@dataclass(frozen=True)
class Engine:
    """What ``Version`` and ``Status`` say."""

    name: str
    version: str
    api_version: str
    default_handler: str
    handlers: frozenset[str]
    systemd_handlers: frozenset[str]
    """Those whose control groups systemd makes, which wants slices for parents."""
    user_namespaces: frozenset[str]
    """Those that can give a pod a user namespace, of which "" is the default one."""
    cdi: bool
    """Devices can be named, see https://github.com/cncf-tags/container-device-interface."""


@dataclass(frozen=True)
class Node:
    """What the kernel of this node offers."""

    cgroup_v2: bool
    apparmor: bool


def read_engine(version: cri.VersionResponse, status: cri.StatusResponse) -> Engine:
    """containerd tells its handlers in its configuration (``info``), from 2.0 on also in a field of their own."""
    config = json.loads(status.info.get("config", "{}"))
    containerd = config.get("containerd", {})
    runtimes = containerd.get("runtimes") or {}
    named = {handler.name for handler in status.runtime_handlers} | set(runtimes)
    return Engine(
        name=version.runtime_name,
        version=version.runtime_version,
        api_version=version.runtime_api_version,
        default_handler=containerd.get("defaultRuntimeName", ""),
        handlers=frozenset(named - {""}),
        systemd_handlers=frozenset(
            name for name, each in runtimes.items() if (each.get("options") or {}).get("SystemdCgroup")
        ),
        user_namespaces=frozenset(each.name for each in status.runtime_handlers if each.features.user_namespaces),
        cdi=bool(config.get("enableCDI", False)),
    )


def place(spec: SandboxSpec, sandbox: str, engine: Engine, node: Node, config: CriConfig) -> Placement:
    """Handler, control group and the like. Raises UnsupportedSpec for what cannot be enforced."""
    _check_security(spec, node)
    if spec.devices and not engine.cdi:
        raise UnsupportedSpec(
            f"{engine.name} {engine.version} cannot give devices to a sandbox.",
            hint="Enable CDI in its configuration (containerd 1.7 or later), or leave out `devices`.",
        )
    handler = _handler(spec, engine)
    systemd = (handler or engine.default_handler) in engine.systemd_handlers
    parent, unified = _cgroup(spec, sandbox, node, config, systemd=systemd)
    return Placement(handler, parent, unified)


def _check_security(spec: SandboxSpec, node: Node) -> None:
    security = spec.security
    if security.apparmor not in (None, "unconfined") and not node.apparmor:
        raise UnsupportedSpec(
            f"the AppArmor profile {security.apparmor} cannot be enforced: this node's kernel has no AppArmor.",
            hint="Leave out `security.apparmor`, or run this on a node that has it.",
        )
    if security.add_capabilities and spec.user not in ("0", "root"):
        raise UnsupportedSpec(
            f"the capabilities {', '.join(security.add_capabilities)} would have no effect for user {spec.user}: the "
            "CRI cannot give capabilities to a user other than 0.",
            hint="Leave out `security.add_capabilities`, or set `user: 0`.",
        )


def _handler(spec: SandboxSpec, engine: Engine) -> str:
    """The empty name is the engine's default."""
    wanted = spec.runtime_handler or ""
    if spec.network == "none":
        wanted = (wanted or engine.default_handler) + NONE_SUFFIX
    if not wanted or wanted in engine.handlers:
        return wanted
    known = ", ".join(sorted(engine.handlers)) or "none"
    if spec.network == "none":
        raise UnsupportedSpec(
            f"`network: none` needs a runtime handler {wanted!r}, which this engine does not have (it has {known}).",
            hint="Use aircelld's own containerd (--managed-containerd), give this one such a handler "
            "(docs/containerd.md), or set `network: pod`.",
        )
    raise UnsupportedSpec(
        f"this engine has no runtime handler {wanted!r} (it has {known}).", hint="Correct `runtime_handler`."
    )


def _cgroup(
    spec: SandboxSpec, sandbox: str, node: Node, config: CriConfig, *, systemd: bool
) -> tuple[str, Mapping[str, str]]:
    """The CRI has no field for pids. On cgroup v2 they are a ``unified`` setting of the container; on v1 the sandbox
    gets a parent group of its own, where the backend sets them (``cgroups.py``)."""
    parent = PurePosixPath(spec.cgroup_parent or config.cgroup_parent)
    pids = spec.resources.pids
    if systemd:
        parent = PurePosixPath(_slice(parent))
    if node.cgroup_v2:
        return str(parent), {"pids.max": str(pids)} if pids is not None else {}
    if not systemd:
        return str(parent / sandbox), {}
    if pids is None:
        return str(parent), {}
    raise UnsupportedSpec(
        f"the limit of {pids} processes cannot be set: this node has cgroup v1, managed by systemd.",
        hint="Use aircelld's own containerd (--managed-containerd), or set `resources.pids: null`.",
    )


def _slice(parent: PurePosixPath) -> str:
    """``/a/b`` as systemd names it, ``a-b.slice``; see systemd.slice(5)."""
    if parent.suffix == ".slice":
        return parent.name
    return "-".join(part for part in parent.parts if part != "/") + ".slice"
