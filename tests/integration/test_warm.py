"""Warm sandboxes on a real node: who gets one, who does not, and what becomes of those that nobody gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Sandbox
from aircell.status import ExitStatus
from tests.support.jobs import request, slow_to_prepare, text
from tests.support.node import Node

AIRCELL = str(Path(sys.executable).with_name("aircell"))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One whose settings tests may change."""
    node = Node()
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
    """A task, as a worker launches it: what a human runs by hand has no pool."""
    return node.client.launch({**request(*argv, **spec), "role": "task"})


def output(node: Node, *argv: str, **spec: Any) -> tuple[str, str]:
    """What a task printed, and how it was served."""
    with launch(node, *argv, **spec) as sandbox:
        printed = text(sandbox.stdout)
        assert sandbox.wait(30) == ExitStatus(code=0)
        return printed, node.inspect(sandbox.id)["kind"]


def wait_ready(node: Node, count: int = 1, seconds: float = 60) -> None:
    """Returns once so many sandboxes are ready in all pools together."""
    node.wait_until(lambda: sum(pool["ready"] for pool in node.pools()) == count, f"{count} are ready", seconds)


def image_id(node: Node, name: str) -> str:
    """Empty when there is none of that name."""
    images = node.answer("images")["images"]
    return next((str(image["id"]) for image in images if name in image["tags"]), "")


def warm_names(node: Node) -> set[str]:
    return {path.name for path in (node.state / "sandboxes").glob("warm-*")}


def test_the_second_task_of_a_kind_finds_a_sandbox_ready(node: Node) -> None:
    assert output(node, "echo", "one") == ("one\n", "cold")
    wait_ready(node)
    with launch(node, "sh", "-c", "echo $$; read line") as sandbox:
        assert sandbox.stdout.recv(10)
        node.wait_state(sandbox.id, "running")
        found = node.inspect(sandbox.id)
        assert (found["kind"], found["made_as"][:5]) == ("warm", "warm-")
        assert found["labels"]["aircell.dev/sandbox"] == sandbox.id
        assert [event["event"] for event in found["events"]] == ["queued", "running"]
        assert sandbox.id in {box["id"] for box in node.ps()}
        assert node.inspect(found["made_as"])["id"] == sandbox.id
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(20) == ExitStatus(code=0)
    (pool,) = node.pools()
    assert (pool["hits"], pool["misses"]) == (1, 0)
    assert 0 < pool["wait_p50"] < 5


def test_each_is_used_once(node: Node) -> None:
    output(node, "true")
    used = []
    for _ in range(2):
        node.wait_until(lambda: any(pool["ready"] for pool in node.pools()), "one is ready", 60)
        with launch(node, "sh", "-c", "test ! -e /tmp/mark && touch /tmp/mark") as sandbox:
            assert sandbox.wait(30) == ExitStatus(code=0)
            used.append(node.inspect(sandbox.id))
    assert [found["kind"] for found in used] == ["warm", "warm"]
    assert used[0]["made_as"] != used[1]["made_as"]


def test_many_at_once_never_share_one(node: Node) -> None:
    with node.configured(warm={"min": 3, "max": 3}):
        output(node, "true")
        wait_ready(node, 3)

        def one(number: int) -> tuple[str, str]:
            with launch(node, "sh", "-c", f"ls -A /tmp; touch /tmp/{number}; read line") as sandbox:
                sandbox.requests.sendall(b"\n")
                assert sandbox.wait(60) == ExitStatus(code=0)
                found = node.inspect(sandbox.id)
                assert text(sandbox.stdout) == ""
                return found["made_as"], found["kind"]

        with ThreadPoolExecutor(20) as threads:
            served = list(threads.map(one, range(20)))
        assert len({name for name, _ in served}) == 20
        assert [kind for _, kind in served].count("warm") >= 3


def test_one_that_was_killed_is_never_given_a_job(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    (name,) = warm_names(node)
    os.kill(node.agent_pid(name), signal.SIGKILL)
    with launch(node, "true") as sandbox:
        assert sandbox.wait(30) == ExitStatus(code=0)
        assert node.inspect(sandbox.id)["made_as"] != name


def test_one_whose_process_for_the_job_was_killed_fails_nobody(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    (name,) = warm_names(node)
    agent = node.agent_pid(name)
    (child,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert output(node, "echo", "done") == ("done\n", "cold")


def test_one_that_dies_while_it_is_given_a_job_fails_nobody(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    (name,) = warm_names(node)
    agent = node.agent_pid(name)
    os.kill(agent, signal.SIGSTOP)  # it gets its job, and cannot take it
    with launch(node, "cat") as sandbox:
        sandbox.requests.sendall(b"kept")
        node.wait_until(lambda: node.inspect(sandbox.id)["made_as"] == name, "it is being handed over")
        os.kill(agent, signal.SIGKILL)
        sandbox.requests.shutdown(1)
        assert text(sandbox.stdout) == "kept"
        assert sandbox.wait(30) == ExitStatus(code=0)
        found = node.inspect(sandbox.id)
        assert found["kind"] == "cold"
        assert found["made_as"] != name


def test_what_cannot_be_changed_afterwards_is_not_shared(node: Node, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mounts = [{"source": str(tmp_path), "target": "/data"}]
    output(node, "true", env={"A": "1"}, mounts=mounts)
    wait_ready(node)
    assert output(node, "sh", "-c", "echo $A", env={"A": "2"}, mounts=mounts) == ("2\n", "cold")
    assert output(node, "true", env={"A": "1"})[1] == "cold"
    assert output(node, "true", env={"A": "1"}, mounts=mounts, resources={"pids": 100})[1] == "cold"
    assert output(node, "sh", "-c", "echo $A", env={"A": "1"}, mounts=mounts) == ("1\n", "warm")


def test_a_folder_put_in_the_place_of_another_is_another(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    mounts = [{"source": str(folder), "target": "/data"}]
    tmp_path.chmod(0o755)
    for content, kind in (("old", "cold"), ("new", "cold")):
        folder.mkdir()
        (folder / "file").write_text(content)
        assert output(node, "cat", "/data/file", mounts=mounts) == (content, kind)
        wait_ready(node)
        folder.rename(tmp_path / content)


def test_late_environment_and_labels_reach_the_job(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    wanted = request("sh", "-c", "echo $LATE", labels={"team": "blue"})
    wanted["job"]["env"] = {"LATE": "yes"}
    with node.client.launch({**wanted, "role": "task"}) as sandbox:
        assert text(sandbox.stdout) == "yes\n"
        assert sandbox.wait(20) == ExitStatus(code=0)
        found = node.inspect(sandbox.id)
        assert (found["kind"], found["labels"]["team"]) == ("warm", "blue")


def test_a_running_job_of_a_warm_sandbox_is_adopted_and_waiting_ones_are_gone(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    with launch(node, "sh", "-c", "read line; exit 5") as sandbox:
        node.wait_state(sandbox.id, "running")
        wait_ready(node)
        waiting = warm_names(node) - {node.inspect(sandbox.id)["made_as"]}
        node.kill()
        node.start()
        assert [(each["id"], each["kind"]) for each in node.ps()] == [(sandbox.id, "warm")]
        assert not warm_names(node) & waiting
        sandbox.requests.sendall(b"go\n")
        assert sandbox.wait(20) == ExitStatus(code=5)


def test_nothing_is_left_when_aircelld_stops(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    node.stop()
    assert list((node.state / "sandboxes").iterdir()) == []
    node.start()


def test_an_idle_aircelld_ends_with_what_is_ready(node: Node) -> None:
    before = dict(node.config)
    node.stop()
    node.config["idle_exit"] = 2
    node.start()
    output(node, "true")
    wait_ready(node)
    node.wait_until(lambda: not node.alive, "aircelld ends", 30)
    assert list((node.state / "sandboxes").iterdir()) == [], node.log.read_text()[-4000:]
    node.config = before
    node.start()


def test_pools_end_when_nobody_wants_them(node: Node) -> None:
    with node.configured(warm={"idle_ttl": 1}):
        output(node, "true")
        node.wait_until(lambda: not node.pools(), "the pool ends", 30)
        node.wait_until(lambda: not warm_names(node), "what it held is removed")


def test_a_refill_has_little_of_the_cpu_time(node: Node) -> None:
    ordinary: set[int] = set()
    with node.client.launch(slow_to_prepare()) as sandbox:
        node.wait_until(lambda: node.cpu_weights(), "the first is being made")
        ordinary = node.cpu_weights()
        assert sandbox.wait(30) == ExitStatus(code=0)
    node.wait_until(lambda: node.cpu_weights() & {12, 128}, "the next is being made")
    wait_ready(node)
    node.wait_until(lambda: node.cpu_weights() <= ordinary, "its weight is as any other's")


def test_a_drained_pool_is_not_refilled(node: Node) -> None:
    """Not even by what was to be made when it ended: a refill waits until a job that has just begun is past that."""
    with launch(node, "sleep", "2"):
        node.wait_until(lambda: node.pools(), "the pool begins")
        node.answer("drain")
        folders = node.state / "sandboxes"
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert not list(folders.glob("warm-*"))
            time.sleep(0.01)


BUDGET = 48 * 2**20


def test_a_small_budget_is_kept(node: Node) -> None:
    def is_used_up() -> bool:
        (pool,) = node.pools()
        assert pool["memory"] <= BUDGET
        return bool(pool["ready"] and BUDGET - pool["memory"] < 1.5 * pool["memory"] / pool["ready"])

    with node.configured(warm={"min": 20, "max": 20, "memory": BUDGET}):
        output(node, "true")
        node.wait_until(is_used_up, "there is no room for another", 60)
        assert node.pools()[0]["ready"] < 20
        output(node, "true", resources={"pids": 100})
        assert sum(each["memory"] for each in node.pools()) <= BUDGET


def test_what_was_wanted_longest_ago_makes_room(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    one = node.pools()[0]["memory"]
    with node.configured(warm={"memory": int(1.3 * one)}):  # the second shares pages with the first, and takes less
        output(node, "true")
        wait_ready(node)
        first = warm_names(node)
        other = {"resources": {"pids": 100}}
        output(node, "true", **other)
        node.wait_until(lambda: warm_names(node).isdisjoint(first), "the other's is removed")
        wait_ready(node)
        assert output(node, "true", **other)[1] == "warm"


def test_switched_off_there_are_none(node: Node) -> None:
    with node.configured(warm={"enabled": False}):
        output(node, "true")
        assert node.pools() == []


def test_another_image_under_the_same_name_ends_the_pool(node: Node) -> None:
    name = "localhost/aircell/changing:test"
    version = ("python3", "-c", "import sys; print(sys.version_info[:2])")
    node.ctr("images", "tag", node.load("base"), name)
    node.wait_until(lambda: image_id(node, name), "the engine sees it")
    output(node, *version, image=name)
    wait_ready(node)
    old, old_id = warm_names(node), image_id(node, name)
    node.ctr("images", "tag", "--force", node.load("python-3.9"), name)
    node.wait_until(lambda: image_id(node, name) != old_id, "the engine sees the other")
    assert output(node, *version, image=name) == ("(3, 9)\n", "cold")
    wait_ready(node)
    assert not warm_names(node) & old
    assert output(node, *version, image=name) == ("(3, 9)\n", "warm")


def test_the_list_of_pools(node: Node) -> None:
    output(node, "true")
    wait_ready(node)
    output(node, "true")
    node.wait_until(lambda: node.pools()[0]["ready"], "another is ready", 60)
    done = subprocess.run([AIRCELL, "pool", "ls", "--socket", node.socket], capture_output=True, text=True, check=True)
    heading, row = done.stdout.splitlines()
    assert heading.split()[:3] == ["POOL", "KIND", "BACKEND"]
    assert "localhost/aircell/base:test" in row
    assert "MiB" in row
    done = subprocess.run(
        [AIRCELL, "pool", "ls", "--json", "--socket", node.socket], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[0]["hits"] == 1
    subprocess.run([AIRCELL, "pool", "drain", "--socket", node.socket], check=True)
    assert warm_names(node) == set()
