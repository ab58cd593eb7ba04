"""Whatever is killed, and whenever: running jobs do not notice, and nothing is left of the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.errors import EngineUnavailable, SandboxLost
from aircell.status import ExitStatus
from tests.support.archive_image import ArchiveImage
from tests.support.images import archive
from tests.support.jobs import Worker, request, text
from tests.support.node import Node, processes, run
from tests.support.registry import serving


@pytest.fixture(autouse=True)
def up_again(node: Node) -> Iterator[None]:
    """Every test leaves aircelld running."""
    yield
    if not node.alive:
        node.start()


def test_a_job_does_not_notice_that_aircelld_was_killed_and_the_next_one_removes_it(node: Node) -> None:
    with node.launch("sh", "-c", "cat; exit 6") as sandbox:
        node.wait_state(sandbox.id, "running")
        node.kill()
        sandbox.requests.sendall(b"nobody noticed")
        sandbox.requests.close()
        assert text(sandbox.stdout) == "nobody noticed"
        assert sandbox.wait(10) == ExitStatus(code=6)
    node.start()
    node.clean()


def test_a_running_job_is_adopted_by_the_next_aircelld(node: Node) -> None:
    with node.launch("sh", "-c", "cat; exit 6", env={"A": "b"}) as sandbox:
        node.wait_state(sandbox.id, "running")
        (before,) = node.ps()
        node.kill()
        node.start()
        assert node.ps() == [before]
        sandbox.requests.close()
        assert sandbox.wait(10) == ExitStatus(code=6)
        node.wait_until(lambda: node.ps() == [], "its end is noticed")
        assert node.history(sandbox.id)[-1]["exit"]["code"] == 6


@pytest.mark.parametrize("stuck", [False, True], ids=["ends", "must be killed"])
def test_a_containerd_that_outlived_its_aircelld_gives_way_to_the_next(
    short_path: Path, tmp_path: Path, stuck: bool
) -> None:
    """Forgets to end with aircelld, as the real one may after it has made a user namespace."""
    node = Node(short_path)
    real = shutil.which(node.config["containerd"]["binary"])
    assert real is not None
    binary = tmp_path / "containerd"
    binary.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig clear {real} "$@"\n')
    (tmp_path / "ctr").symlink_to(Path(real).with_name("ctr"))
    binary.chmod(0o755)
    node.config["containerd"]["binary"] = str(binary)
    try:
        node.start()
        old = node.containerd_pid()
        node.kill()
        if stuck:
            os.kill(old, signal.SIGSTOP)
        node.start()
        assert node.engine_answers()
        assert node.containerd_pid() != old
        assert old not in dict(processes())
    finally:
        node.close()


def test_an_adopted_job_can_be_stopped(node: Node) -> None:
    with node.launch("sleep", "600") as sandbox:
        node.wait_state(sandbox.id, "running")
        node.kill()
        node.start()
        assert node.answer("stop", sandbox=sandbox.id, grace=5) == {"ok": True}
        assert sandbox.wait(5).signal == signal.SIGTERM


def test_an_adopted_job_without_its_worker_is_ended(node: Node) -> None:
    worker = Worker(node.socket, request("sleep", "600", stop_grace=0.5))
    node.wait_state(worker.sandbox, "running")
    os.kill(node.agent_pid(worker.sandbox), signal.SIGSTOP)
    node.kill()
    worker.kill()
    node.start()
    assert [box["id"] for box in node.ps()] == [worker.sandbox]
    node.wait_until(lambda: node.ps() == [], "it is stopped", 20)


def test_a_job_does_not_notice_that_containerd_was_killed(node: Node) -> None:
    with node.launch("sh", "-c", "cat; exit 6") as sandbox:
        node.wait_state(sandbox.id, "running")
        pid = node.containerd_pid()
        os.kill(pid, signal.SIGKILL)
        sandbox.requests.sendall(b"nobody noticed")
        sandbox.requests.close()
        assert text(sandbox.stdout) == "nobody noticed"
        assert sandbox.wait(10) == ExitStatus(code=6)
    node.wait_until(lambda: node.ps() == [], "its end is noticed")
    assert node.containerd_pid() != pid
    with node.launch("true") as sandbox:
        assert sandbox.wait(20) == ExitStatus(code=0)


def test_snapshots_that_a_killed_containerd_had_half_made_fail_no_launch(node: Node) -> None:
    """containerd makes the folder first and its record afterwards, so that the next snapshot has the same number."""
    with node.launch("sleep", "600", stop_grace=0) as sandbox:
        node.wait_state(sandbox.id, "running")
        [snapshots] = node.root.glob("*/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots")
        last = max(int(folder.name) for folder in snapshots.iterdir())
    left = [snapshots / str(last + 1), snapshots / str(last + 2)]  # the pod's, and the container's
    for folder in left:
        (folder / "fs/left").mkdir(parents=True)
    with node.launch("sh", "-c", "! [ -e /left ]") as sandbox:
        assert sandbox.wait(20) == ExitStatus(code=0)
        assert "once more" in node.log.read_text()
    node.clean()


def test_launches_while_containerd_is_away_fail_as_unavailable_or_succeed(node: Node) -> None:
    os.kill(node.containerd_pid(), signal.SIGKILL)
    for _ in range(5):
        with node.launch("true") as sandbox:
            with contextlib.suppress(EngineUnavailable):
                assert sandbox.wait(30) == ExitStatus(code=0)
            time.sleep(0.1)
    node.wait_until(node.engine_answers, "containerd is back")


@pytest.mark.parametrize("delay", [0, 0.02, 0.06, 0.1, 0.15, 0.2])
def test_nothing_is_left_of_a_launch_in_which_aircelld_was_killed(node: Node, delay: float) -> None:
    resources = {"scratch": "8Mi", "shm": "4Mi"}
    with node.launch("sleep", "600", resources=resources, stop_grace=0):
        time.sleep(delay)
        node.kill()
    node.start()
    node.clean()


@pytest.mark.parametrize("network", ["none", "pod"])
@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.15])
def test_nothing_is_left_of_a_launch_in_which_containerd_was_killed(node: Node, delay: float, network: str) -> None:
    with node.launch("sleep", "600", stop_grace=0, network=network):
        time.sleep(delay)
        os.kill(node.containerd_pid(), signal.SIGKILL)
    node.wait_until(lambda: node.ps() == [], "the launch has ended", 30)
    node.wait_until(node.engine_answers, "containerd is back")
    node.answer("prune")
    node.clean()
    node.restart()  # or the next kill, so soon after this one, would be answered with a longer pause


def test_nothing_is_left_of_a_launch_that_waited_for_its_agent(node: Node, hangs: dict[str, Any]) -> None:
    with node.launch("true", **hangs) as sandbox:
        node.wait_state(sandbox.id, "starting")
        node.kill()
        with pytest.raises(SandboxLost, match="before the job was started"):
            sandbox.wait(10)
        node.start()
        assert node.ps() == []
        node.clean()


def test_nothing_is_left_of_a_launch_that_waited_for_its_image(node: Node) -> None:
    with serving(ArchiveImage(archive("base"))) as slow:
        slow.any_name = True
        node.allow_plain_http(slow.host)
        slow.open.clear()
        with node.launch("true", image=slow.reference("killed")) as sandbox:
            node.wait_state(sandbox.id, "pulling")
            node.kill()
            with pytest.raises(SandboxLost):
                sandbox.wait(10)
        slow.open.set()
    node.start()
    node.clean()


def test_prune_tells_what_it_would_remove_and_removes_it(node: Node) -> None:
    left = node.state / "sandboxes" / "run-000000000000"
    (left / "scratch").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "aircell", str(left / "scratch"))
    (left / "scratch" / "file").write_text("x")
    expected = [{"sandbox": left.name, "why": "its sandbox is gone"}]
    with node.launch("sleep", "600") as sandbox:
        node.wait_state(sandbox.id, "running")
        assert node.answer("prune", dry_run=True)["removed"] == expected
        assert left.exists()
        assert node.answer("prune")["removed"] == expected
        assert not left.exists()
        assert [box["id"] for box in node.ps()] == [sandbox.id]


def test_what_is_left_on_the_engine_is_found_by_its_label(node: Node) -> None:
    """As after a crash in which the folder was lost, too."""
    with node.launch("sleep", "1") as sandbox:
        node.wait_state(sandbox.id, "running")
        node.kill()
        sandbox.wait(10)
    subprocess.run(["rm", "-rf", str(node.state / "sandboxes" / sandbox.id)], check=True)
    node.start()
    node.clean()


def test_the_reaper_comes_by_itself(node: Node) -> None:
    left = node.state / "sandboxes" / "run-000000000000"
    with node.configured(reap_interval=0.3):
        left.mkdir()
        node.wait_until(lambda: not left.exists(), "the reaper came", 5)


def test_another_aircelld_on_the_same_engine_is_left_alone(node: Node, short_path: Path) -> None:
    """Its sandboxes carry another node's label."""
    other = Node.beside(node, short_path)
    try:
        other.start()
        with node.launch("sleep", "600") as ours, other.launch("sleep", "600") as theirs:
            node.wait_state(ours.id, "running")
            other.wait_state(theirs.id, "running")
            assert node.answer("prune")["removed"] == other.answer("prune")["removed"] == []
            assert [box["id"] for box in node.ps()] == [ours.id]
            assert [box["id"] for box in other.ps()] == [theirs.id]
        other.wait_until(lambda: other.ps() == [], "theirs has ended")
    finally:
        other.stop()
