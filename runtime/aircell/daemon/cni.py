"""Network configuration of Aircell's own containerd: what ``network: pod`` and ``network: none`` mean there.

``pod`` is the reference ``bridge`` plugin with ``host-local`` addresses. ``none`` needs a plugin as well, because the
CRI has no pod without a network: ours makes nothing and answers with the loopback address, which is what is left.

Sources: the CNI specification, 1.0.0; the documentation of the ``bridge`` and ``host-local`` plugins.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aircell.errors import EngineUnavailable

logger = logging.getLogger(__name__)

PLUGIN_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
REFERENCE_PLUGINS = ("bridge", "host-local", "loopback")
_NONE_PLUGIN = "aircell-none"
_CNI_VERSION = "1.0.0"

_NONE_SCRIPT = """\
#!/bin/sh
# Makes no interface. The engine insists on an address for eth0, so it is told the one that exists: loopback's.
case "$CNI_COMMAND" in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],\
"ips":[{"address":"127.0.0.1/8","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
"""


@dataclass(frozen=True)
class CniFolders:
    """Where containerd finds plugins and configurations."""

    plugins: Path
    pod: Path
    none: Path


def write_cni(folder: Path, state: Path, *, bridge: str, subnet: str, search: Sequence[str] = ()) -> CniFolders:
    """Writes everything below ``folder``; address leases go to ``state``, since they end with the node's uptime.

    Raises EngineUnavailable when the reference plugins are not installed.
    """
    folders = CniFolders(plugins=folder / "bin", pod=folder / "pod", none=folder / "none")
    for path in (folders.plugins, folders.pod, folders.none):
        path.mkdir(parents=True, exist_ok=True)
    source = find_plugins(search or PLUGIN_FOLDERS)
    for name in REFERENCE_PLUGINS:
        link = folders.plugins / name
        link.unlink(missing_ok=True)
        link.symlink_to(source / name)
    script = folders.plugins / _NONE_PLUGIN
    script.write_text(_NONE_SCRIPT)
    script.chmod(0o755)
    pod = _bridge(bridge, subnet, address_folder(state), masquerade=_can_masquerade())
    (folders.pod / "10-aircell.conflist").write_text(json.dumps(_list("aircell-pod", pod), indent=2))
    (folders.none / "10-aircell.conflist").write_text(
        json.dumps(_list("aircell-none", {"type": _NONE_PLUGIN}), indent=2)
    )
    return folders


def address_folder(state: Path) -> Path:
    """Where the addresses in use are reserved, in a folder for each network."""
    return state / "addresses"


def remove_bridge(name: str) -> None:
    """Removes the bridge that the plugin made, unless a sandbox is still on it. Idempotent."""
    ports = Path("/sys/class/net") / name / "brif"
    if ports.is_dir() and not any(ports.iterdir()):
        ip = shutil.which("ip") or "/sbin/ip"
        subprocess.run([ip, "link", "delete", name, "type", "bridge"], check=False, timeout=30)  # noqa: S603


def find_plugins(search: Sequence[str] = PLUGIN_FOLDERS) -> Path:
    """The folder of the reference plugins. Raises EngineUnavailable when there is none."""
    for folder in map(Path, search):
        if all((folder / name).is_file() for name in REFERENCE_PLUGINS):
            return folder
    raise EngineUnavailable(
        f"the CNI plugins {', '.join(REFERENCE_PLUGINS)} are in none of {', '.join(search)}.",
        hint="Install them (Debian: containernetworking-plugins) or name their folder in containerd.cni_plugins.",
    )


def _bridge(name: str, subnet: str, leases: Path, *, masquerade: bool) -> dict[str, object]:
    default = "::/0" if ipaddress.ip_network(subnet).version == 6 else "0.0.0.0/0"
    return {
        "type": "bridge",
        "bridge": name,
        "isGateway": True,
        "ipMasq": masquerade,
        "hairpinMode": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(leases),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": default}],
        },
    }


def _list(name: str, plugin: dict[str, object]) -> dict[str, object]:
    return {"cniVersion": _CNI_VERSION, "name": name, "plugins": [plugin]}


def _can_masquerade() -> bool:
    """Whether the bridge plugin can translate addresses here; without it pods reach this node but nothing beyond."""
    tool = shutil.which("iptables")
    if tool is None:
        reason = "iptables is not installed"
    else:
        probe = subprocess.run(  # noqa: S603 - a fixed command
            [tool, "-w", "-t", "nat", "-S", "POSTROUTING"], capture_output=True, text=True, timeout=30, check=False
        )
        if probe.returncode == 0:
            return True
        reason = probe.stderr.strip()
    logger.warning("sandboxes with network=pod cannot reach beyond this node: no address translation (%s)", reason)
    return False
