"""How sandboxes end when nobody planned it: their agent killed, their worker gone, their memory full."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from aircell.status import ExitStatus
from tests.support.jobs import Worker, request
from tests.support.node import Node


def test_an_agent_that_is_killed_is_reported_with_how_it_ended(node: Node) -> None:
    with node.launch("sleep", "60") as sandbox:
        node.wait_state(sandbox.id, "running")
        os.kill(node.agent_pid(sandbox.id), signal.SIGKILL)
        status = sandbox.wait(10)
        assert (status.signal, status.oom_killed) == (signal.SIGKILL, False)
        assert status.reason
        assert node.history(sandbox.id)[-1]["exit"] == status.to_wire()


def test_a_job_that_takes_too_much_memory_is_reported_as_such(node: Node) -> None:
    with node.launch("python3", "-c", "x = bytearray(10**9)", resources={"memory": "64Mi"}) as sandbox:
        status = sandbox.wait(30)
        assert (status.signal, status.oom_killed) == (signal.SIGKILL, True)
        assert "memory limit" in status.reason


def test_a_sandbox_ends_with_its_worker(node: Node) -> None:
    worker = Worker(node.socket, request("sleep", "600"))
    node.wait_state(worker.sandbox, "running")
    worker.kill()
    node.wait_until(lambda: node.ps() == [], "the sandbox is gone", 10)
    assert "worker went away" in node.history(worker.sandbox)[-1]["exit"]["reason"]


def test_a_launch_ends_with_its_worker(node: Node, hangs: dict[str, Any]) -> None:
    worker = Worker(node.socket, request("true", **hangs))
    node.wait_state(worker.sandbox, "starting")
    worker.kill()
    node.wait_until(lambda: node.ps() == [], "the sandbox is gone", 10)
    assert node.history(worker.sandbox)[-1]["exit"]["reason"] == "the worker went away before the job began"


def test_an_agent_that_does_not_end_with_its_worker_is_ended(node: Node) -> None:
    worker = Worker(node.socket, request("sleep", "600", stop_grace=0.5))
    node.wait_state(worker.sandbox, "running")
    os.kill(node.agent_pid(worker.sandbox), signal.SIGSTOP)
    worker.kill()
    began = time.monotonic()
    node.wait_until(lambda: node.ps() == [], "the sandbox is gone", 30)
    assert time.monotonic() - began > 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_launch_that_is_starting(node: Node, hangs: dict[str, Any], number: signal.Signals) -> None:
    with node.launch("true", **hangs) as sandbox:
        node.wait_state(sandbox.id, "starting")
        began = time.monotonic()
        sandbox.signal(number)
        assert "before the job began" in sandbox.wait(10).reason
        assert time.monotonic() - began < 2


def test_stop_ends_a_launch_that_is_starting(node: Node, hangs: dict[str, Any]) -> None:
    with node.launch("true", **hangs) as sandbox:
        node.wait_state(sandbox.id, "starting")
        node.answer("stop", sandbox=sandbox.id)
        assert node.traces() == {}
        assert "stopped by a request" in sandbox.wait(5).reason


def test_what_a_job_leaves_running_is_ended_with_it(node: Node) -> None:
    daemon = "setsid sh -c 'trap \"\" TERM; sleep 600' >/dev/null 2>&1 & exit 0"
    with node.launch("sh", "-c", daemon) as sandbox:
        assert sandbox.wait(20) == ExitStatus(code=0)


def test_launches_and_stops_at_any_moment_leave_nothing(node: Node) -> None:
    for delay in (0, 0.01, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3):
        sandbox = node.launch("sleep", "60", stop_grace=0)
        time.sleep(delay)
        assert node.answer("stop", sandbox=sandbox.id, grace=0) == {"ok": True}
        sandbox.close()
        sandbox = node.launch("sleep", "60", stop_grace=0)
        time.sleep(delay)
        sandbox.close()


def test_a_signal_at_any_moment_ends_the_launch_or_the_job(node: Node) -> None:
    """The lifeline changes hands while a launch goes on; nothing that is sent on it may get lost on the way."""
    for step in range(12):
        with node.launch("sleep", "600") as sandbox:
            time.sleep(step * 0.03)
            sandbox.signal(signal.SIGTERM)
            assert sandbox.wait(10).signal == signal.SIGTERM
