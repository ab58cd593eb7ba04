"""What Aircell's own containerd is told: from :class:`ContainerdConfig` to the content of ``config.toml``.

Sources: ``docs/cri/config.md`` of containerd 1.6 and 2.3, and what their ``containerd config default`` prints.
"""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, Field

from aircell.daemon.cni import CniFolders
from aircell.daemon.pause_image import PAUSE_IMAGE
from aircell.spec import AbsolutePath, Model

NONE_SUFFIX = "-none"
"""A runtime handler's twin whose pods have no network but loopback; the CRI backend looks for it by this name."""

_RUNTIMES = ("runc", "crun", "youki")
_CAP_SYS_RESOURCE = 24
_STATS_PERIOD = "10s"
"""Between two readings of every container's CPU time for ``crictl stats``. containerd 2.3 has 1 s, which took half a
CPU beside 200 sandboxes: see ``docs/performance.md``."""
_UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)


def _subnet(value: str) -> str:
    return str(ipaddress.ip_network(value))


class ContainerdConfig(Model):
    """A containerd that belongs to Aircell alone. Two of them need different folders, bridges and subnets."""

    root: AbsolutePath
    """Images and snapshots: large, kept across restarts of the node."""
    state: AbsolutePath
    """Sockets, runtime state and the log; short, because the path of a unix socket has at most 107 bytes."""
    binary: str = "containerd"
    """A name on PATH or a path; ``ctr`` and the shim are looked for beside it first."""
    snapshotter: str = "overlayfs"
    """``native`` where the root is itself on an overlay."""
    registry_hosts: AbsolutePath = "/etc/containerd/certs.d"
    """Mirrors, certificates and plain HTTP for registries: ``HOST/hosts.toml``, as containerd documents them."""
    cni_plugins: AbsolutePath | None = None
    """Folder of the reference CNI plugins; None looks in the usual places."""
    bridge: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,15}$")] = "aircell0"
    subnet: Annotated[str, AfterValidator(_subnet)] = "10.213.0.0/16"
    """Addresses of sandboxes with ``network: pod``."""


def installed_runtimes(path: str) -> dict[str, str]:
    """Low-level runtimes on a search path, by name; the first is the default handler."""
    return {name: found for name in _RUNTIMES if (found := shutil.which(name, path=path))}


def lacks_sys_resource(proc_status: str) -> bool:
    """Whether a process with this ``/proc/PID/status`` may not lower an OOM score, as containerd else wants to."""
    for line in proc_status.splitlines():
        if line.startswith("CapEff:"):
            return not int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1
    return False


def render(
    config: ContainerdConfig,
    *,
    major: int,
    socket: Path,
    runtimes: Mapping[str, str],
    cni: CniFolders,
    restrict_oom_score: bool,
) -> str:
    """``config.toml`` for containerd 1.x (format 2) or 2.x (format 3)."""
    runtime = {
        "restrict_oom_score_adj": restrict_oom_score,
        "netns_mounts_under_state_dir": True,
        "cni": {"bin_dir": str(cni.plugins), "conf_dir": str(cni.pod), "max_conf_num": 1},
        "containerd": {
            "default_runtime_name": next(iter(runtimes)),
            "runtimes": _handlers(Path(config.state), runtimes, cni),
        },
    }
    plugins = _plugins_1 if major < 2 else _plugins_2
    content = {
        "version": 2 if major < 2 else 3,
        "root": config.root,
        "state": config.state,
        "disabled_plugins": _disabled(config.snapshotter),
        "grpc": {"address": str(socket)},
        "plugins": {"io.containerd.internal.v1.opt": {"path": f"{config.root}/opt"}, **plugins(config, runtime)},
    }
    return tomli_w.dumps(content)


def _disabled(snapshotter: str) -> Sequence[str]:
    return [name for name in _UNUSED_PLUGINS if not name.endswith(f".{snapshotter}")]


def _handlers(state: Path, runtimes: Mapping[str, str], cni: CniFolders) -> dict[str, Any]:
    handlers: dict[str, Any] = {}
    for name, path in runtimes.items():
        options = {"BinaryName": path, "Root": str(state / name), "SystemdCgroup": False}
        handler = {"runtime_type": "io.containerd.runc.v2", "options": options}
        handlers[name] = handler
        handlers[name + NONE_SUFFIX] = handler | {"cni_conf_dir": str(cni.none), "cni_max_conf_num": 1}
    return handlers


def _plugins_1(config: ContainerdConfig, runtime: dict[str, Any]) -> dict[str, Any]:
    runtime["containerd"]["snapshotter"] = config.snapshotter
    images = {"sandbox_image": PAUSE_IMAGE, "registry": {"config_path": config.registry_hosts}}
    return {"io.containerd.grpc.v1.cri": runtime | images}


def _plugins_2(config: ContainerdConfig, runtime: dict[str, Any]) -> dict[str, Any]:
    return {
        "io.containerd.cri.v1.images": {
            "snapshotter": config.snapshotter,
            "pinned_images": {"sandbox": PAUSE_IMAGE},
            "registry": {"config_path": config.registry_hosts},
        },
        "io.containerd.cri.v1.runtime": runtime | {"stats_collect_period": _STATS_PERIOD},
        # Its default socket is one for the whole node, and another containerd may hold it.
        "io.containerd.nri.v1.nri": {"disable": True},
    }
