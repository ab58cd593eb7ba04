"""The walls around a job in a warm sandbox are those around it in a cold one, as seen from inside, on each engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from aircell.status import ExitStatus
from tests.support.docker_node import DockerNode
from tests.support.jobs import request, text
from tests.support.node import Node

LOOK = r"""
import glob, json, os, resource, socket
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
def can_write(folder):
    try:
        os.close(os.open(folder + "/probe", os.O_CREAT | os.O_WRONLY)); os.unlink(folder + "/probe")
        return True
    except OSError as error:
        return type(error).__name__
status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
names = "Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp SigBlk SigIgn SigCgt".split()
mounts = [line.split(" - ") for line in read("/proc/self/mountinfo").splitlines()]
limits = "memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares cpu/cpu.cfs_quota_us"
print(json.dumps({
    "status": {name: status.get(name) for name in names},
    "processes": len([pid for pid in os.listdir("/proc") if pid.isdecimal()]),
    "mounts": sorted([left.split()[4], left.split()[5], right.split()[0]] for left, right in mounts),
    "limits": {name: read("/sys/fs/cgroup/" + name) for name in limits.split()},
    "rlimits": [resource.getrlimit(number) for number in range(16)],
    "writable": {folder: can_write(folder) for folder in ("/", "/tmp", "/etc", "/run/aircell", "/dev/shm", "/data")},
    "run": sorted(os.listdir("/run/aircell")),
    "tmp": os.listdir("/tmp"),
    "data": read("/data/file"),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "resolv": read("/etc/resolv.conf"),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "environment": {name: value for name, value in os.environ.items() if name != "HOSTNAME"},
    "place": [os.getcwd(), os.umask(0), os.getpgid(0) == os.getpid(), read("/proc/self/oom_score_adj")],
    "agent": read("/proc/1/environ"),
}))
"""
SPECS: dict[str, dict[str, Any]] = {
    "restricted": {},
    "limits": {"resources": {"memory": "256Mi", "pids": 50, "cpus": 0.5, "shm": "4Mi", "scratch": "8Mi"}},
    "user": {"user": "1234", "group": 56, "groups": [7, 8]},
    "open": {"network": "pod", "security": {"profile": "baseline", "read_only_root": False}},
}


@pytest.fixture(scope="module", params=[Node, DockerNode])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    node: Node = request.param()
    node.config["policy"] = {"profiles": ["restricted", "baseline"]}
    node.config["warm"] = {"max": 1}
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_job_finds_the_same_walls(node: Node, spec: dict[str, Any], tmp_path: Any) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("content")
    mounts = [{"source": str(tmp_path), "target": "/data"}]
    wanted = {**request("python3", "-c", LOOK, mounts=mounts, env={"EARLY": "1"}, **spec), "role": "task"}
    wanted["job"]["env"] = {"LATE": "2"}
    wanted["backend"] = next(iter(node.config["backends"]))
    kind, cold = _look(node, wanted)
    assert kind == "cold"
    assert (cold["data"], cold["environment"]["EARLY"], cold["environment"]["LATE"]) == ("content", "1", "2")
    node.wait_until(lambda: node.pools()[0]["ready"], "a sandbox is ready", 60)
    kind, warm = _look(node, wanted)
    assert kind == "warm"
    assert warm == cold
    node.clean()


def _look(node: Node, wanted: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    with node.client.launch(wanted) as sandbox:
        report = text(sandbox.stdout)
        assert sandbox.wait(30) == ExitStatus(code=0)
        return node.inspect(sandbox.id)["kind"], json.loads(report)
