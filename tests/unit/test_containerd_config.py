"""The files that aircelld writes for its own containerd."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tomllib
from pydantic import ValidationError

from aircell.daemon.cni import CniFolders, find_plugins, write_cni
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.containerd_config import ContainerdConfig, lacks_sys_resource, render
from aircell.daemon.pause_image import PAUSE_IMAGE, write_pause_archive
from aircell.errors import EngineUnavailable, InvalidSpec

CONFIG = ContainerdConfig(root="/var/lib/a", state="/run/a")
CNI = CniFolders(plugins=Path("/c/bin"), pod=Path("/c/pod"), none=Path("/c/none"))

HANDLERS = {
    "runc": {
        "runtime_type": "io.containerd.runc.v2",
        "options": {"BinaryName": "/sbin/runc", "Root": "/run/a/runc", "SystemdCgroup": False},
    },
    "runc-none": {
        "runtime_type": "io.containerd.runc.v2",
        "options": {"BinaryName": "/sbin/runc", "Root": "/run/a/runc", "SystemdCgroup": False},
        "cni_conf_dir": "/c/none",
        "cni_max_conf_num": 1,
    },
}
RUNTIME = {
    "restrict_oom_score_adj": True,
    "netns_mounts_under_state_dir": True,
    "cni": {"bin_dir": "/c/bin", "conf_dir": "/c/pod", "max_conf_num": 1},
    "containerd": {"default_runtime_name": "runc", "runtimes": HANDLERS},
}
REGISTRY = {"config_path": "/etc/containerd/certs.d"}
UNUSED = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
]
COMMON = {
    "root": "/var/lib/a",
    "state": "/run/a",
    "disabled_plugins": UNUSED,
    "grpc": {"address": "/run/a/containerd.sock"},
}
OPT = {"io.containerd.internal.v1.opt": {"path": "/var/lib/a/opt"}}


def rendered(major: int) -> dict[str, Any]:
    text = render(
        CONFIG,
        major=major,
        socket=Path("/run/a/containerd.sock"),
        runtimes={"runc": "/sbin/runc"},
        cni=CNI,
        restrict_oom_score=True,
    )
    parsed: dict[str, Any] = tomllib.loads(text)
    return parsed


def test_containerd_1() -> None:
    runtime = RUNTIME | {"containerd": {**RUNTIME["containerd"], "snapshotter": "overlayfs"}}  # type: ignore[dict-item]
    plugin = runtime | {"sandbox_image": PAUSE_IMAGE, "registry": REGISTRY}
    assert rendered(1) == COMMON | {"version": 2, "plugins": OPT | {"io.containerd.grpc.v1.cri": plugin}}


def test_containerd_2() -> None:
    images = {"snapshotter": "overlayfs", "pinned_images": {"sandbox": PAUSE_IMAGE}, "registry": REGISTRY}
    plugins = {
        "io.containerd.cri.v1.images": images,
        "io.containerd.cri.v1.runtime": RUNTIME | {"stats_collect_period": "10s"},
        "io.containerd.nri.v1.nri": {"disable": True},
    }
    assert rendered(2) == COMMON | {"version": 3, "plugins": OPT | plugins}


@pytest.mark.parametrize(
    ("capabilities", "lacks"), [("000001ffffffffff", False), ("000001fffeffffff", True), ("0000000000000000", True)]
)
def test_the_capability_for_oom_scores(capabilities: str, lacks: bool) -> None:
    assert lacks_sys_resource(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{capabilities}\n") is lacks


def test_a_malformed_subnet() -> None:
    with pytest.raises(ValidationError, match=r"10\.1\.2\.3/16"):
        ContainerdConfig(root="/r", state="/s", subnet="10.1.2.3/16")


def test_a_socket_path_that_is_too_long() -> None:
    config = ContainerdConfig(root="/r", state="/" + "s" * 90)
    with pytest.raises(InvalidSpec, match=r"has 113 bytes, Linux allows 107.*containerd.state"):
        ManagedContainerd(config)


# --- Network ---


def test_cni_files(tmp_path: Path) -> None:
    folders = write_cni(tmp_path / "cni", tmp_path / "state", bridge="b0", subnet="10.9.0.0/24")
    assert {path.name for path in folders.plugins.iterdir()} == {"bridge", "host-local", "loopback", "aircell-none"}
    [pod] = folders.pod.iterdir()
    assert json.loads(pod.read_text()) == {
        "cniVersion": "1.0.0",
        "name": "aircell-pod",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "b0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": f"{tmp_path}/state/addresses",
                    "ranges": [[{"subnet": "10.9.0.0/24"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    write_cni(tmp_path / "cni", tmp_path / "state", bridge="b0", subnet="10.9.0.0/24")


def test_without_address_translation_pods_are_said_to_reach_the_node_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folders = write_cni(tmp_path / "cni", tmp_path / "state", bridge="b0", subnet="10.9.0.0/24")
    [pod] = folders.pod.iterdir()
    assert json.loads(pod.read_text())["plugins"][0]["ipMasq"] is False
    assert "network=pod cannot reach beyond this node" in caplog.text
    assert "iptables is not installed" in caplog.text


def test_missing_plugins(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"bridge, host-local, loopback.*containernetworking-plugins"):
        find_plugins((str(tmp_path),))


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "VERSION"])
def test_the_plugin_that_makes_nothing(tmp_path: Path, command: str) -> None:
    folders = write_cni(tmp_path / "cni", tmp_path / "state", bridge="b0", subnet="10.9.0.0/24")
    environment = {"CNI_COMMAND": command, "CNI_NETNS": "/run/netns/x"}
    done = subprocess.run([folders.plugins / "aircell-none"], env=environment, capture_output=True, check=True)
    answer = json.loads(done.stdout or "{}")
    assert answer == {
        "ADD": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        },
        "VERSION": {"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]},
    }.get(command, {})


# --- The pause image ---


def test_pause_archive_is_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pause_archive(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a").read_bytes())) as archive:
        names = archive.getnames()
    assert {"oci-layout", "index.json"} < set(names)
    assert len(names) == 5
