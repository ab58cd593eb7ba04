"""Launches through a real aircelld on a real containerd: what a worker sees, and what is left."""

from __future__ import annotations

import os
import signal
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from aircell.errors import (
    ImageNotFound,
    IncompatibleImage,
    InvalidSpec,
    RefusedByPolicy,
    StartupFailed,
    UnsupportedSpec,
)
from aircell.status import ExitStatus
from tests.support.jobs import events, request, text
from tests.support.node import Node


def test_a_command_has_its_streams_and_its_exit_code(node: Node) -> None:
    with node.launch("sh", "-c", "cat; echo out; echo err >&2; exit 3") as sandbox:
        sandbox.requests.sendall(b"in\n")
        sandbox.requests.close()
        assert (text(sandbox.stdout), text(sandbox.stderr)) == ("in\nout\n", "err\n")
        assert sandbox.wait(20) == ExitStatus(code=3)


def test_the_events_come_in_order_and_end_with_the_exit(node: Node) -> None:
    before = time.time()
    with node.launch("true") as sandbox:
        came = events(sandbox)
        assert [event["event"] for event in came] == ["queued", "creating", "starting", "running", "exited"]
        assert came[1]["image"] == node.load("base")
        assert came[-1]["exit"] == ExitStatus(code=0).to_wire()
        times = [before, *(event["at"] for event in came), time.time()]
        assert times == sorted(times)


def test_a_request_is_accepted_before_anything_is_made(node: Node) -> None:
    began = time.monotonic()
    with node.launch("true") as sandbox:
        accepted = time.monotonic() - began
        sandbox.wait(20)
        assert accepted < 0.1 < time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_reaches_the_command(node: Node, number: signal.Signals) -> None:
    with node.launch("sh", "-c", "echo ready; exec sleep 60") as sandbox:
        assert sandbox.stdout.recv(6) == b"ready\n"
        sandbox.signal(number)
        status = sandbox.wait(20)
        assert (status.code, status.signal) == (None, number)


def test_many_launches_at_once(node: Node) -> None:
    sandboxes = [node.launch("sh", "-c", f"echo {number}; exit {number}") for number in range(8)]
    for number, sandbox in enumerate(sandboxes):
        with sandbox:
            assert sandbox.wait(60).code == number
            assert text(sandbox.stdout) == f"{number}\n"


def test_the_scratch_space_is_private_writable_and_home(node: Node) -> None:
    with node.launch("sh", "-c", "echo x > $HOME/file; stat -c '%a %n' /tmp; find /tmp") as sandbox:
        assert text(sandbox.stdout) == "1777 /tmp\n/tmp\n/tmp/file\n"


def test_scratch_and_shared_memory_have_the_size_that_was_asked_for(node: Node) -> None:
    script = "df --output=size,target -B1 /tmp /dev/shm; head -c 9000000 /dev/zero > /tmp/x"
    with node.launch("sh", "-c", script, resources={"scratch": "8Mi", "shm": "4Mi"}) as sandbox:
        lines = [line.split() for line in text(sandbox.stdout).splitlines()[1:]]
        assert lines == [[str(8 * 2**20), "/tmp"], [str(4 * 2**20), "/dev/shm"]]
        assert "No space left" in text(sandbox.stderr)


def test_folders_nested_deeper_than_a_stack_are_removed(node: Node) -> None:
    script = "import os\nos.chdir('/tmp')\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')"
    with node.launch("python3", "-c", script) as sandbox:
        assert sandbox.wait(30) == ExitStatus(code=0)
        events(sandbox)


def test_a_bundle_is_mounted_where_the_worker_has_it(node: Node, tmp_path: Path) -> None:
    (tmp_path / "dag.py").write_text("hello")
    tmp_path.chmod(0o755)
    bundle = [{"source": str(tmp_path), "target": "/bundle"}]
    with node.client.launch(request("sh", "-c", "cat /bundle/dag.py; touch /bundle/x", mounts=bundle)) as sandbox:
        assert text(sandbox.stdout) == "hello"
        assert "Read-only file system" in text(sandbox.stderr)


def test_the_network_is_what_was_asked_for(node: Node) -> None:
    script = "import os; print(*sorted(os.listdir('/sys/class/net')))"
    for network, interfaces in (("none", "lo\n"), ("pod", "eth0 lo\n")):
        with node.launch("python3", "-c", script, network=network) as sandbox:
            assert text(sandbox.stdout) == interfaces


def test_a_mount_of_the_author_needs_a_rule_and_a_link_leads_nowhere_else(node: Node, short_path: Path) -> None:
    (short_path / "data").mkdir()
    (short_path / "data" / "out").mkdir(mode=0o777)
    (short_path / "data" / "out").chmod(0o777)
    (short_path / "data" / "link").symlink_to("/etc")
    short_path.chmod(0o755)
    rules = [{"path": str(short_path / "data")}, {"path": str(short_path / "data" / "out"), "writable": True}]
    out = {"source": str(short_path / "data" / "out"), "target": "/out", "read_only": False}
    with pytest.raises(RefusedByPolicy, match="permitted: none at all"):
        node.launch("true", mounts_of_author=[out])
    with node.configured(policy={"mounts": rules}):
        with node.launch("sh", "-c", "echo x > /out/file", mounts_of_author=[out]) as sandbox:
            assert sandbox.wait(20) == ExitStatus(code=0)
        assert (short_path / "data" / "out" / "file").read_text() == "x\n"
        with pytest.raises(RefusedByPolicy, match="mounts: '/etc' is not permitted"):
            node.launch("true", mounts_of_author=[{"source": str(short_path / "data" / "link"), "target": "/x"}])
        with pytest.raises(RefusedByPolicy, match="may not be mounted writable"):
            node.launch("true", mounts_of_author=[{**out, "source": str(short_path / "data")}])


def test_a_refused_request_makes_nothing(node: Node) -> None:
    made = len(node.ps(all=True))
    with pytest.raises(RefusedByPolicy, match=r"network: 'host' .*policy.networks"):
        node.launch("true", network="host")
    with pytest.raises(RefusedByPolicy, match="uid 0"):
        node.launch("true", user="0")
    with pytest.raises(RefusedByPolicy, match=r"worker's mount of /run .*protected"):
        node.client.launch(request("true", mounts=[{"source": "/run", "target": "/x"}]))
    with pytest.raises(RefusedByPolicy, match="protected"):
        node.client.launch(request("true", mounts=[{"source": str(node.state), "target": "/x"}]))
    with pytest.raises(InvalidSpec, match="/no/such/place does not exist"):
        node.client.launch(request("true", mounts=[{"source": "/no/such/place", "target": "/x"}]))
    assert len(node.ps(all=True)) == made
    assert node.traces() == {}


def test_what_the_engine_cannot_enforce_fails_the_launch(node: Node) -> None:
    error = node.failure(UnsupportedSpec, runtime_handler="no-such-runtime")
    assert "no-such-runtime" in str(error)
    assert [event["event"] for event in node.history(error.sandbox)] == ["queued", "failed"]


def test_a_missing_image_fails_the_launch(node: Node) -> None:
    error = node.failure(ImageNotFound, image="localhost/no/such:image", pull_policy="never")
    assert "localhost/no/such:image is not on this node" in str(error)


def test_an_image_without_the_interpreter_fails_at_once_and_says_why(node: Node) -> None:
    assert "interpreter is not in the image" in str(node.failure(StartupFailed, python="no-such-python"))


def test_an_interpreter_that_ends_is_reported_with_its_last_words(node: Node) -> None:
    """``ls`` stands for any program that ends without coming to the gate."""
    error = node.failure(StartupFailed, python="/bin/ls")
    assert "ended with code 0 before the job could begin" in str(error)
    assert "/run/aircell/agent.py" in error.detail


def test_the_worker_hears_of_a_death_within_a_second(node: Node, hangs: dict[str, Any]) -> None:
    with node.launch("true", **hangs) as sandbox:
        node.wait_state(sandbox.id, "starting")
        agent = node.agent_pid(sandbox.id)
        began = time.monotonic()
        os.kill(agent, signal.SIGKILL)
        with pytest.raises(StartupFailed, match=f"ended with signal {signal.SIGKILL:d} before the job could begin"):
            sandbox.wait(10)
        assert time.monotonic() - began < 1.0


def test_an_interpreter_that_hangs_is_given_its_time(node: Node, hangs: dict[str, Any]) -> None:
    error = node.failure(StartupFailed, startup_timeout=1.5, **hangs)
    assert "not ready within 1.5 s" in str(error)


def test_a_runner_that_finds_the_image_wanting_says_so_itself(node: Node) -> None:
    runner = "def describe():\n    raise RuntimeError('no moon here\\nbring one')\ndef preload(): pass\n"
    wanted = request("true")
    wanted["job"] = {"kind": "runner", "runner": runner}
    with node.client.launch(wanted) as sandbox, pytest.raises(IncompatibleImage) as caught:
        sandbox.wait(30)
    assert (caught.value.message, caught.value.hint) == ("no moon here", "bring one")


@pytest.mark.parametrize(
    ("image", "theirs"),
    [("task-old", "Airflow 3.1.8"), ("old-python", "Python 3.7"), ("base", "no apache-airflow-core")],
)
def test_an_image_that_cannot_run_tasks_is_refused_within_a_second_of_its_start(
    node: Node, image: str, theirs: str
) -> None:
    node.load(image)
    wanted = request("true", image=image)
    wanted["job"] = {"kind": "runner", "runner": files("aircell_airflow").joinpath("runner.py").read_text()}
    taken = []
    for _ in range(3):  # other tests take their share of the CPU; the best is still longer than it takes alone
        with node.client.launch(wanted) as sandbox:
            came = {event["event"]: event for event in events(sandbox)}
        assert theirs in came["failed"]["error"]["message"]
        taken.append(came["failed"]["at"] - came["starting"]["at"])
    assert min(taken) < 1.0


def test_a_runner_gets_its_arguments_environment_and_streams(node: Node) -> None:
    runner = (
        "import os\n"
        "def describe(): return {'moon': 1}\n"
        "def preload(): pass\n"
        "def run(requests, stdout, stderr, logs, args):\n"
        "    os.write(stdout, (args['word'] + os.environ['LATE']).encode())\n"
        "    os.write(logs, b'log')\n"
        "    return 7\n"
    )
    wanted = request("true")
    wanted["job"] = {"kind": "runner", "runner": runner, "args": {"word": "hello "}, "env": {"LATE": "world"}}
    with node.client.launch(wanted) as sandbox:
        assert (text(sandbox.stdout), text(sandbox.logs)) == ("hello world", "log")
        assert sandbox.wait(20) == ExitStatus(code=7)
        assert sandbox.facts == {"moon": 1} | (sandbox.facts or {})


def test_what_looks_for_leftovers_finds_every_kind_of_a_live_sandbox(node: Node) -> None:
    kinds = {"containers", "snapshots", "mounts", "cgroups", "folders", "addresses", "interfaces", "shims"}
    with node.client.launch(request("sleep", "600", network="pod")) as sandbox:
        node.wait_state(sandbox.id, "running")
        assert set(node.traces()) == kinds
