"""Tasks in forks of zygotes on a real node: containerd 2.3 and a runc that has user namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Sandbox
from aircell.status import ExitStatus
from images.build import cache_dir
from tests.support.jobs import request, slow_to_prepare, text, until
from tests.support.node import Node, running

INSIDE = """
import json, os
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({name: status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp_filters", "Uid")}))
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running(str(cache_dir() / "bin" / "containerd")) as node:
        yield node


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


def kind(node: Node, sandbox: Sandbox) -> str:
    return str(node.inspect(sandbox.id)["kind"])


def made_as(node: Node, sandbox: Sandbox) -> str:
    return str(node.inspect(sandbox.id)["made_as"])


def wait_ready(node: Node) -> None:
    node.wait_until(lambda: sum(pool["ready"] for pool in node.pools()) >= 1, "one is ready", 60)


def zygotes(node: Node) -> set[str]:
    return {path.name for path in (node.state / "sandboxes").glob("zygote-*")}


def warmed(node: Node) -> None:
    """A fork waits for the next task."""
    run(node, "true")
    wait_ready(node)
    assert {pool["kind"] for pool in node.pools()} == {"zygote"}


def test_a_zygote_in_the_making_comes_first(node: Node) -> None:
    with node.client.launch(slow_to_prepare()) as sandbox:
        assert sandbox.wait(30) == ExitStatus(code=0)
    node.wait_until(lambda: node.cpu_weights() & {10000, 262144}, "the zygote is being made")
    wait_ready(node)
    assert not node.cpu_weights() & {10000, 262144}


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
        node.wait_until(lambda: all(pool["ready"] for pool in node.pools()), "all are ready", 60)
    assert zygotes(node) == {first}
    run(node, "true", user="1234")
    node.wait_until(lambda: all(pool["ready"] for pool in node.pools()), "all are ready", 60)
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


def test_those_that_find_none_ready_are_forks_too(node: Node) -> None:
    warmed(node)
    with contextlib.ExitStack() as stack:
        burst = [stack.enter_context(launch(node, "echo", "here")) for _ in range(6)]
        assert [text(sandbox.stdout) for sandbox in burst] == ["here\n"] * 6
        assert [sandbox.wait(30) for sandbox in burst] == [ExitStatus(code=0)] * 6
        assert {kind(node, sandbox) for sandbox in burst} == {"zygote"}
        assert len({sandbox.id for sandbox in burst} & {made_as(node, sandbox) for sandbox in burst}) >= 2


def test_a_burst_whose_zygote_dies_fails_no_task(node: Node) -> None:
    warmed(node)
    [old] = zygotes(node)
    with contextlib.ExitStack() as stack:
        burst = [stack.enter_context(launch(node, "echo", "here")) for _ in range(6)]
        os.kill(serving(node, old), signal.SIGKILL)
        assert [sandbox.wait(30) for sandbox in burst] == [ExitStatus(code=0)] * 6
        assert [text(sandbox.stdout) for sandbox in burst] == ["here\n"] * 6


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
    """The process that holds the gate: the child of the zygote's PID 1. A fork has one PID namespace more."""
    programs = [pid for pid in members(node, zygote) if b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    [pid] = [pid for pid in programs if len(numbers(pid)) == 2 and numbers(pid)[-1] != 1]
    return pid


def numbers(pid: int) -> list[int]:
    """Those of a process in each of its PID namespaces, from the node's on."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(number) for number in status.partition("NSpid:")[2].partition("\n")[0].split()]


def members(node: Node, zygote: str) -> list[int]:
    """Every process of its pod that is not in a shell."""
    groups = Path("/sys/fs/cgroup/pids") / node.tag / zygote
    return [int(pid) for file in groups.glob("*/cgroup.procs") for pid in file.read_text().split()]


HOARD = """
import signal
hoard = []
def preload(): signal.signal(signal.SIGUSR1, lambda *_: hoard.append(b"x" * (100 << 20)))
def describe(): return {}
def run(requests, stdout, stderr, logs, args):
    import os
    os.write(stdout, b"up")
    return os.read(requests, 1)[0]
"""
"""A runner that makes its zygote take 100 MiB more when it is told so; its job waits for its exit code."""


def hoarder(node: Node, **spec: Any) -> Sandbox:
    job = {"kind": "runner", "runner": HOARD, "args": {}}
    return node.client.launch({**request("-", **spec), "role": "task", "job": job})


def run_hoarder(node: Node, **spec: Any) -> str:
    """How it was served."""
    with hoarder(node, **spec) as sandbox:
        until(sandbox, "up")
        sandbox.requests.sendall(b"\0")
        assert sandbox.wait(30) == ExitStatus(code=0)
        return kind(node, sandbox)


@pytest.mark.parametrize(
    ("memory", "end"), [("512Mi", "ends: it has grown"), ("96Mi", "ended by itself")], ids=["grows", "eats all it may"]
)
def test_a_zygote_that_leaks_is_replaced_and_fails_no_task(node: Node, memory: str, end: str) -> None:
    limits = {"memory": memory}
    run_hoarder(node, resources=limits)
    wait_ready(node)
    [old] = zygotes(node)
    with hoarder(node, resources=limits) as sandbox:
        until(sandbox, "up")
        assert kind(node, sandbox) == "zygote"
        os.kill(serving(node, old), signal.SIGUSR1)
        node.wait_until(lambda: f"zygote {old} {end}" in node.log.read_text(), "its end is noticed")
        for _ in range(2):  # one fork may be ready still
            run_hoarder(node, resources=limits)
            wait_ready(node)
        assert run_hoarder(node, resources=limits) == "zygote"
        [new] = zygotes(node) - {old}
        sandbox.requests.sendall(b"\7")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.wait_until(lambda: zygotes(node) == {new}, "the old one is gone")


def test_a_zygote_whose_pod_the_engine_has_lost_is_replaced_and_fails_no_task(node: Node) -> None:
    warmed(node)
    [old] = zygotes(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        assert kind(node, sandbox) == "zygote"
        [pause] = [pid for pid in members(node, old) if b"pause" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(pause, signal.SIGKILL)
        node.wait_until(lambda: run(node, "true") and zygotes(node) - {old} and node.pools()[0]["ready"], "another", 60)
        node.wait_until(lambda: run(node, "true")[1] == "zygote", "it serves", 60)
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.answer("drain")
    node.restart()  # containerd has forgotten the shim of that pod; aircelld ends such before it starts another


def test_a_task_outlives_the_engine_and_forks_are_made_of_the_next(node: Node) -> None:
    warmed(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        assert kind(node, sandbox) == "zygote"
        os.kill(node.containerd_pid(), signal.SIGKILL)
        node.wait_until(node.engine_answers, "the engine is there again")
        node.wait_until(lambda: run(node, "true")[1] == "zygote", "forks are made", 60)
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.wait_until(lambda: not node.answer("prune")["removed"], "what could not be removed meanwhile is", 30)


def test_zygotes_that_die_at_any_moment_fail_no_task(node: Node) -> None:
    """While they are made, and while forks of them are."""
    warmed(node)
    ended, kills = threading.Event(), 0
    served: list[str] = []
    with ThreadPoolExecutor() as executor:
        tasks = executor.submit(one_after_another, node, ended, served)
        while not tasks.done() and (kills < 15 or len(served) < 8):
            time.sleep(0.1 * (kills % 5))
            kills += 1
            for name in zygotes(node):
                with contextlib.suppress(OSError, ValueError):  # it has ended, or has not begun
                    os.kill(serving(node, name), signal.SIGKILL)
        ended.set()
        tasks.result()
    node.wait_until(lambda: run(node, "true")[1] == "zygote", "there is one again", 60)


def one_after_another(node: Node, ended: threading.Event, served: list[str]) -> None:
    """Two tasks at a time, to the end of the test; those that succeeded come into ``served``."""
    while not ended.is_set():
        with launch(node, "echo", "here") as first, launch(node, "echo", "here") as second:
            for sandbox in (first, second):
                assert text(sandbox.stdout) == "here\n"
                assert sandbox.wait(30) == ExitStatus(code=0)
                served.append(sandbox.id)


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
