"""Tasks in forks of zygotes on a real node: containerd 2.3 and a runc that has user namespaces."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Sandbox
from aircell.status import ExitStatus
from images.build import cache_dir
from tests.support.jobs import request, text
from tests.support.node import Node

INSIDE = """
import json, os
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({name: status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp_filters", "Uid")}))
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    node = Node()
    node.config["containerd"]["binary"] = str(cache_dir() / "bin" / "containerd")
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


def run(node: Node, *argv: str, **spec: Any) -> tuple[str, str]:
    """What a task printed, and how it was served."""
    with launch(node, *argv, **spec) as sandbox:
        printed = text(sandbox.stdout)
        assert sandbox.wait(30) == ExitStatus(code=0)
        return printed, kind(node, sandbox)


def until(sandbox: Sandbox, said: str) -> None:
    """Returns once the task has said it on stdout."""
    heard = b""
    while said.encode() not in heard:
        data = sandbox.stdout.recv(4096)
        assert data, f"stdout ended after {heard!r}"
        heard += data


def kind(node: Node, sandbox: Sandbox) -> str:
    return str(node.answer("inspect", sandbox=sandbox.id)["sandbox"]["kind"])


def pools(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.answer("pools")["pools"]
    return found


def wait_ready(node: Node) -> None:
    node.wait_until(lambda: sum(pool["ready"] for pool in pools(node)) >= 1, "one is ready", 60)


def zygotes(node: Node) -> set[str]:
    return {path.name for path in (node.state / "sandboxes").glob("zygote-*")}


def warmed(node: Node) -> None:
    """A fork waits for the next task."""
    run(node, "true")
    wait_ready(node)
    assert {pool["kind"] for pool in pools(node)} == {"zygote"}


def test_the_second_task_is_a_fork(node: Node) -> None:
    assert run(node, "true")[1] == "cold"
    wait_ready(node)
    printed, how = run(node, "python3", "-c", INSIDE)
    assert how == "zygote"
    nothing = "0" * 16
    uids = "\t".join(["50000"] * 4)
    assert json.loads(printed) == {
        "CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1", "Seccomp_filters": "2", "Uid": uids,
    }  # fmt: skip


def test_shapes_that_differ_in_limits_share_a_zygote_and_others_do_not(node: Node) -> None:
    warmed(node)
    [first] = zygotes(node)
    for memory in ("256Mi", "512Mi"):
        run(node, "true", resources={"memory": memory})
        node.wait_until(lambda: all(pool["ready"] for pool in pools(node)), "all are ready", 60)
    assert zygotes(node) == {first}
    run(node, "true", user="1234")
    node.wait_until(lambda: all(pool["ready"] for pool in pools(node)), "all are ready", 60)
    assert len(zygotes(node)) == 2
    assert len({ids(node, name) for name in zygotes(node)}) == 2


def ids(node: Node, name: str) -> int:
    record = json.loads((node.state / "sandboxes" / name / "sandbox.json").read_text())
    return int(record["ids"]["start"])


def test_a_task_outlives_aircelld_its_zygote_and_the_range_of_its_ids_stays_taken(node: Node) -> None:
    warmed(node)
    [old] = zygotes(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        assert kind(node, sandbox) == "zygote"
        node.kill()
        node.start()
        warmed(node)
        new = zygotes(node) - {old}
        assert len(zygotes(node)) == 2
        assert ids(node, old) not in {ids(node, name) for name in new}
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.answer("drain")
    node.wait_until(lambda: not node.answer("prune")["removed"] and not zygotes(node), "the old zygote is gone", 30)


def test_a_zygote_that_dies_is_replaced_and_fails_no_task(node: Node) -> None:
    warmed(node)
    [old] = zygotes(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        os.kill(serving(node, old), signal.SIGKILL)
        for _ in range(2):  # one fork may be ready still
            assert run(node, "true")[0] == ""
            wait_ready(node)
        assert zygotes(node) - {old}
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)


def serving(node: Node, zygote: str) -> int:
    """The process that holds the gate of the zygote: the child of the first one."""
    groups = Path("/sys/fs/cgroup/pids") / node.tag / zygote
    pids = [int(pid) for file in groups.glob("*/cgroup.procs") for pid in file.read_text().split()]
    return max(pid for pid in pids if b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_out_of_memory(node: Node) -> None:
    limits = {"memory": "64Mi"}
    run(node, "true", resources=limits)
    wait_ready(node)
    with launch(node, "python3", "-c", "x = bytearray(300 << 20)", resources=limits) as sandbox:
        exit = sandbox.wait(30)
        assert (exit.signal, exit.oom_killed) == (9, True)
        assert kind(node, sandbox) == "zygote"


def test_stop(node: Node) -> None:
    warmed(node)
    with launch(node, "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done") as sandbox:
        until(sandbox, "up")
        assert kind(node, sandbox) == "zygote"
        node.answer("stop", sandbox=sandbox.id, grace=20)
        assert sandbox.wait(30).code == 5
