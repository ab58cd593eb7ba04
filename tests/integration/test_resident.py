"""DAG files parsed in forks of residents, on real engines: with user namespaces, and without."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aircell.client import Sandbox
from aircell.errors import RefusedByPolicy
from aircell.status import ExitStatus
from images.build import cache_dir
from tests.support.docker_node import DockerNode
from tests.support.jobs import request, text, until
from tests.support.node import Node


def containerd_2() -> Node:
    node = Node()
    node.config["containerd"]["binary"] = str(cache_dir() / "bin" / "containerd")
    return node


ENGINES = {"containerd 2": containerd_2, "containerd 1.6": Node, "docker": DockerNode}
NAMESPACES = "containerd 2"


@pytest.fixture(scope="module", params=ENGINES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    node = ENGINES[request.param]()
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()


@pytest.fixture
def namespaces(request: pytest.FixtureRequest) -> bool:
    """Whether the engine gives forks namespaces of their own."""
    return bool(request.node.callspec.params["node"] == NAMESPACES)


def launch(node: Node, *argv: str, **spec: Any) -> Sandbox:
    wanted = {**request(*argv, parse_isolation="image", **spec), "role": "parse"}
    if isinstance(node, DockerNode):
        wanted["backend"] = "docker"
    return node.client.launch(wanted)


def python(node: Node, code: str, **spec: Any) -> Sandbox:
    return launch(node, "python3", "-c", code, **spec)


def run(node: Node, *argv: str, **spec: Any) -> tuple[str, dict[str, Any]]:
    """What a parse printed, and how it was served."""
    with launch(node, *argv, **spec) as sandbox:
        printed = text(sandbox.stdout)
        assert sandbox.wait(30) == ExitStatus(code=0)
        return printed, node.inspect(sandbox.id)


def residents(node: Node) -> set[str]:
    return {path.name for path in (node.state / "sandboxes").glob("resident-*")}


def warmed(node: Node, **spec: Any) -> str:
    """A fork waits for the next parse: the name of its resident."""
    run(node, "true", **spec)
    node.wait_until(lambda: any(pool["ready"] for pool in node.pools()), "one is ready", 60)
    served = run(node, "true", **spec)[1]
    assert served["kind"] == "resident"
    return str(served["made_as"])


def test_the_second_parse_is_a_fork(node: Node) -> None:
    node.answer("drain")
    assert run(node, "true")[1]["kind"] == "cold"
    name = warmed(node)
    assert residents(node) == {name}
    assert {pool["kind"] for pool in node.pools()} == {"resident"}
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        [listed] = [each for each in node.ps() if each["id"] == sandbox.id]
        assert (listed["kind"], listed["made_as"], listed["role"]) == ("resident", name, "parse")
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)


def test_forks_share_no_file_and_no_descriptor(node: Node, namespaces: bool) -> None:
    warmed(node)
    write = "import os, tempfile; open(os.environ['HOME'] + '/mine', 'w'); open('/dev/shm/x', 'w'); tempfile.mkstemp()"
    read = (
        "import os; print(sorted(os.listdir('/dev/shm')), os.listdir(os.environ['HOME']), os.listdir('/proc/self/fd'))"
    )
    with python(node, write + "; print('up', flush=True); input()") as first:
        until(first, "up")
        assert node.inspect(first.id)["kind"] == "resident"
        printed, served = run(node, "python3", "-c", read)
        assert served["kind"] == "resident"
        assert printed.startswith("[] [] " if namespaces else "['x'] [] ")
        assert printed.split("] ")[-1].count(",") == 3  # stdin, stdout, stderr, and that of the listing
        first.requests.sendall(b"\n")
        assert first.wait(30) == ExitStatus(code=0)


def test_what_is_mounted_in_the_scratch_space_is_there(node: Node, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "dag.py").write_text("here")
    for path in tmp_path.parents[:-2]:
        path.chmod(0o755)
    spec = {"mounts": [{"source": str(tmp_path), "target": "/tmp/bundle/dags"}]}
    name = warmed(node, **spec)
    printed, served = run(
        node, "sh", "-c", "cat /tmp/bundle/dags/dag.py; touch /tmp/bundle/dags/x 2>&1 || true", **spec
    )
    assert "here" in printed
    assert "Read-only" in printed
    assert served["made_as"] == name


PRIVILEGES = """
import json, os
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print(json.dumps([[status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Uid")], max(pids)]))
"""


def test_a_fork_has_no_privileges(node: Node, namespaces: bool) -> None:
    warmed(node)
    privileges, pid = json.loads(run(node, "python3", "-c", PRIVILEGES)[0])
    assert privileges == ["0" * 16, "0" * 16, "1", "\t".join(["50000"] * 4)]
    assert (pid <= 3) is namespaces  # the agent, the parse, and nobody else


DAEMON = """
import os, sys, time
print('up', flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.dup2(os.open('/dev/null', os.O_RDWR), 1)
        time.sleep(987654)
    os._exit(0)
os.wait()
print('forked', flush=True)
time.sleep(600)
"""


def sleepers() -> set[int]:
    """Processes of the parse above."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"time.sleep(987654)" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_parse_is_killed_as_a_whole(node: Node) -> None:
    warmed(node)
    with python(node, DAEMON) as sandbox, python(node, "input(); print('well')") as other:
        until(sandbox, "forked")
        assert len(sleepers()) == 2
        sandbox.signal(signal.SIGKILL)
        exit = sandbox.wait(30)
        assert (exit.code, exit.signal, exit.reason) == (None, 9, "Ended after the worker sent SIGKILL.")
        assert not sleepers()
        other.requests.sendall(b"\n")
        assert text(other.stdout) == "well\n"
        assert other.wait(30) == ExitStatus(code=0)


def agent_of(pid: int) -> int:
    """Of a process of a parse: the process of its agent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_nothing_is_left_of_a_parse_whose_agent_is_killed(node: Node) -> None:
    warmed(node)
    with python(node, DAEMON) as sandbox:
        until(sandbox, "forked")
        parents = {agent_of(pid) for pid in sleepers()}
        [agent] = {agent_of(pid) for pid in sleepers()} - sleepers() if len(parents) > 1 else parents
        os.kill(agent, signal.SIGKILL)
        node.wait_until(lambda: not sleepers(), "all of it has ended")
        assert "ended from outside" in sandbox.wait(30).reason
    assert run(node, "true")[1]["kind"] == "resident"


def test_stop(node: Node) -> None:
    warmed(node)
    with launch(node, "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done") as sandbox:
        until(sandbox, "up")
        node.answer("stop", sandbox=sandbox.id, grace=20)
        assert sandbox.wait(30).code == 5


def test_memory_that_one_takes_too_much_of_is_no_matter_of_another(node: Node) -> None:
    limits = {"memory": "128Mi"}
    name = warmed(node, resources=limits)
    with python(node, "input()", resources=limits) as well:
        with python(node, "x = bytearray(300 << 20)", resources=limits) as greedy:
            exit = greedy.wait(30)
            assert (exit.signal, exit.oom_killed) == (9, True)
        well.requests.sendall(b"\n")
        assert well.wait(30) == ExitStatus(code=0)
    served = run(node, "true", resources=limits)[1]
    assert (served["kind"], served["made_as"]) == ("resident", name)


def serving(node: Node, name: str) -> int:
    """The process of a resident that forks: the only child of the first one, until there are orphans."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"resident.py" in path.read_bytes() and f"/{name}/run " in (path.parent / "mountinfo").read_text():
                parent = agent_of(int(path.parent.name))
                if b"resident.py" not in Path(f"/proc/{parent}/cmdline").read_bytes():
                    return int((path.parent / "task" / path.parent.name / "children").read_text().split()[0])
        except OSError:
            continue
    raise LookupError(name)


def test_a_resident_that_dies_fails_no_parse(node: Node) -> None:
    name = warmed(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        os.kill(serving(node, name), signal.SIGKILL)
        for _ in range(6):
            run(node, "true")
        node.wait_until(lambda: residents(node) - {name}, "there is another", 60)
        assert warmed(node) != name
        assert name in residents(node)
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.wait_until(lambda: name not in residents(node), "the old one is removed", 30)


def test_a_parse_outlives_aircelld(node: Node) -> None:
    name = warmed(node)
    with launch(node, "sh", "-c", "echo up; read line; exit 7") as sandbox:
        until(sandbox, "up")
        node.kill()
        node.start()
        assert name in residents(node)
        assert warmed(node) != name
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=7)
    node.wait_until(lambda: name not in residents(node), "the old one is removed", 30)


@pytest.mark.parametrize("limit", [{"files": 4}, {"seconds": 0.5}, {"growth": 1.000001}], ids=str)
def test_a_resident_is_renewed_and_no_parse_waits_for_that(node: Node, limit: dict[str, float]) -> None:
    """The first order takes a resident a page or two: that is growth enough here."""
    with node.configured(residents=limit):
        names = {warmed(node)}
        deadline = time.monotonic() + 60
        while len(names) < 3:
            assert time.monotonic() < deadline
            served = run(node, "true")[1]
            assert served["kind"] == "resident"
            names.add(served["made_as"])
        node.wait_until(lambda: len(residents(node)) <= 2, "the first is removed", 30)


def test_a_parse_that_wants_its_own_has_it(node: Node) -> None:
    name = warmed(node)
    served = run(node, "true", user="1234")[1]
    assert served["made_as"] != name
    with node.client.launch({**request_of(node), "role": "task"}) as task:
        assert task.wait(30) == ExitStatus(code=0)
        assert node.inspect(task.id)["kind"] != "resident"


def request_of(node: Node) -> dict[str, Any]:
    return {**request("true", parse_isolation="image"), "backend": "docker" if isinstance(node, DockerNode) else "cri"}


def test_a_node_may_forbid_it(node: Node) -> None:
    with (
        node.configured(policy={"parse_isolations": ["file"]}),
        pytest.raises(RefusedByPolicy, match="parse_isolation: 'image' is not permitted on this node"),
    ):
        launch(node, "true")
