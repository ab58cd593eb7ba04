"""Prepared pods on a real node: what starts cold finds one, and nothing is left of those that nobody finds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Sandbox
from aircell.status import ExitStatus
from tests.support.jobs import request, text
from tests.support.node import Node, processes

PODS = 2


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One on which every task starts cold."""
    node = Node()
    node.config["warm"] = {"min": 0, "max": 0, "pods": PODS}
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()


@pytest.fixture(autouse=True)
def nothing_is_left(node: Node) -> Iterator[None]:
    yield
    node.clean()


def launch(node: Node, *argv: str, **spec: Any) -> Sandbox:
    return node.client.launch({**request(*argv, **spec), "role": "task"})


def made_as(node: Node, *argv: str, **spec: Any) -> str:
    """What a task was made as that has succeeded."""
    with launch(node, *argv, **spec) as sandbox:
        assert sandbox.wait(30) == ExitStatus(code=0)
        return str(node.inspect(sandbox.id)["made_as"])


def shims(node: Node) -> set[str]:
    """Command lines of the processes that hold pods."""
    return {" ".join(command) for _, command in processes() if node.containerd_socket in command and "-id" in command}


def wait_ready(node: Node, running: int = 0) -> set[str]:
    """Returns once all pods of one kind are ready and nothing else is there but what runs: what holds them."""
    node.wait_until(lambda: [pool["pods"] for pool in node.pools()] == [PODS], "pods are ready")
    node.wait_until(lambda: len(shims(node)) == PODS + running, "nothing else is left")
    return shims(node)


def test_what_starts_cold_finds_a_pod(node: Node) -> None:
    assert made_as(node, "true").startswith("task-")
    wait_ready(node)
    with launch(node, "sh", "-c", "hostname; read line", labels={"team": "blue"}) as sandbox:
        name = sandbox.stdout.recv(100).decode().strip()
        found = node.inspect(sandbox.id)
        assert (found["kind"], found["made_as"]) == ("cold", name)
        assert name.startswith("pod-")
        assert [event["event"] for event in found["events"]] == ["queued", "creating", "starting", "running"]
        assert found["events"][-1]["ready"] is False
        assert node.inspect(name)["id"] == sandbox.id
        told = node.ctr("containers", "list", "labels.team==blue", "--quiet").split()
        assert len(told) == 1, "the container has the labels of its task"
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(20) == ExitStatus(code=0)
    wait_ready(node)


def test_each_serves_once(node: Node) -> None:
    made_as(node, "true")
    wait_ready(node)
    names = [made_as(node, "sh", "-c", "test ! -e /tmp/mark && touch /tmp/mark") for _ in range(2)]
    assert all(name.startswith("pod-") for name in names)
    assert len(set(names)) == 2


def test_when_none_is_ready_nothing_waits_for_one(node: Node) -> None:
    made_as(node, "true")
    wait_ready(node)
    boxes = [launch(node, "sh", "-c", "read line") for _ in range(PODS + 3)]
    for sandbox in boxes:
        node.wait_state(sandbox.id, "running")
    names = [node.inspect(sandbox.id)["made_as"] for sandbox in boxes]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("pod-") for name in names) >= PODS
    for sandbox in boxes:
        sandbox.close()


def test_its_container_is_the_task_s_own(node: Node) -> None:
    """Image, user, limits, mounts and environment are not the pod's."""
    made_as(node, "true")
    wait_ready(node)
    program = "id -u; echo $A; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    wanted = {"env": {"A": "b"}, "user": "7", "resources": {"pids": 77, "memory": 2**26}, "image": "python-3.9"}
    node.load("python-3.9")
    with launch(node, "sh", "-c", program, **wanted) as sandbox:
        assert text(sandbox.stdout).split() == ["7", "b", "max", str(2**26)]
        assert sandbox.wait(30) == ExitStatus(code=0)
        assert node.inspect(sandbox.id)["made_as"].startswith("pod-")


@pytest.mark.parametrize(
    "other", [{"network": "pod"}, {"dns": {"servers": ["10.0.0.1"]}}, {"security": {"read_only_root": False}}], ids=str
)
def test_what_a_pod_is_made_with_is_not_shared(node: Node, other: dict[str, Any]) -> None:
    made_as(node, "true")
    before = wait_ready(node)
    assert made_as(node, "true", **other).startswith("task-")
    assert shims(node) >= before


def test_one_that_has_ended_fails_nobody(node: Node) -> None:
    made_as(node, "true")
    wait_ready(node)
    for pid, command in processes():
        if command[0] == "/pause" and str(node.root) in Path(f"/proc/{pid}/cgroup").read_text():
            os.kill(pid, signal.SIGKILL)
    with launch(node, "echo", "done") as sandbox:
        assert text(sandbox.stdout) == "done\n"
        assert sandbox.wait(30) == ExitStatus(code=0)


def test_a_running_task_is_adopted_and_pods_are_gone(node: Node) -> None:
    made_as(node, "true")
    wait_ready(node)
    with launch(node, "sh", "-c", "read line; exit 5") as sandbox:
        node.wait_state(sandbox.id, "running")
        wait_ready(node, running=1)
        name = node.inspect(sandbox.id)["made_as"]
        node.kill()
        node.start()
        assert [(each["id"], each["made_as"]) for each in node.ps()] == [(sandbox.id, name)]
        assert len(shims(node)) == 1
        sandbox.requests.sendall(b"go\n")
        assert sandbox.wait(20) == ExitStatus(code=5)


def test_one_that_is_stopped(node: Node) -> None:
    made_as(node, "true")
    wait_ready(node)
    with launch(node, "sleep", "600") as sandbox:
        node.wait_state(sandbox.id, "running")
        assert node.answer("stop", sandbox=sandbox.id, grace=5) == {"ok": True}
        assert sandbox.wait(5).signal == signal.SIGTERM
        assert len(shims(node)) <= PODS


def test_they_end_when_nobody_wants_them(node: Node) -> None:
    with node.configured(warm={**node.config["warm"], "idle_ttl": 2}):
        made_as(node, "true")
        node.wait_until(lambda: node.pools() == [], "the pool ends")
        node.wait_until(lambda: not shims(node), "its pods are removed")


def test_a_refill_takes_none(node: Node) -> None:
    with node.configured(warm={"pods": PODS, "max": 1}, zygotes={"enabled": False}):
        made_as(node, "true")
        node.wait_until(lambda: [each["pods"] for each in node.pools()] == [PODS], "pods are ready")
        before = shims(node)
        assert made_as(node, "true").startswith("warm-")
        node.wait_until(lambda: node.pools()[0]["ready"] == 1, "the pool is full again")
        assert len(before & shims(node)) >= PODS
