"""Requirements: pip in a sandbox, from a real index, on a real containerd (and in ``test_docker.py`` on Docker)."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from aircell.errors import BuildFailed, BuildUnavailable, RefusedByPolicy
from tests.support.jobs import events, text
from tests.support.node import Node
from tests.support.package_index import PASSWORD, PackageIndex, serving

WHERE = "import greeting, json; print(json.dumps([greeting.SAYS, greeting.__file__, greeting.__cached__]))"
FOLDER = "/opt/aircell/requirements"
LOOK = "import os, json; print(json.dumps([os.environ['PYTHONPATH'], os.environ['PATH'].split(':')[0]]))"


@pytest.fixture(scope="module")
def index(node: Node) -> Iterator[PackageIndex]:
    with serving({"greeting": "SAYS = 'hello'\n", "other": ""}) as index:
        node.pip_conf.write_text(index.pip_conf(node.gateway))
        yield index


@pytest.fixture
def slow(index: PackageIndex) -> Iterator[PackageIndex]:
    """The same, giving nothing out until the test lets it."""
    index.open.clear()
    yield index
    index.open.set()


def said(node: Node, program: str, *requirements: str) -> list[str]:
    with node.launch("python3", "-c", program, requirements=requirements) as sandbox:
        answer: list[str] = json.loads(text(sandbox.stdout))
        assert sandbox.wait(60).code == 0
    return answer


def builds(node: Node) -> int:
    return sum(sandbox["role"] == "build" for sandbox in node.ps(all=True))


def test_one_build_serves_all_who_want_it(node: Node, slow: PackageIndex) -> None:
    before = builds(node)
    first, second = (node.launch("python3", "-c", WHERE, requirements=("greeting==1.0",)) for _ in range(2))
    with first, second:
        node.wait_until(lambda: any("/greeting" in path for path in slow.asked), "pip asks for it", 60)
        slow.open.set()
        building = [event for event in events(first, 90) if event["event"] == "building"]
        answers = [json.loads(text(sandbox.stdout)) for sandbox in (first, second)]
    cached = f"{FOLDER}/__pycache__/greeting.cpython-311.pyc"
    assert answers == [["hello", f"{FOLDER}/greeting.py", cached]] * 2
    assert building[0]["base"] == "localhost/aircell/base:test"
    assert building[0]["image"].startswith("localhost/aircell/requirements:")
    assert "greeting-1.0" in "".join(event["line"] for event in building)
    assert building[0]["image"] in node.images()
    assert said(node, LOOK, "greeting==1.0") == [FOLDER, f"{FOLDER}/bin"]
    assert builds(node) == before + 1
    with pytest.raises(RefusedByPolicy, match="cannot be named"):
        node.launch("true", image=building[0]["image"])


def test_an_image_made_for_requirements_is_pruned_when_nobody_uses_it(node: Node, index: PackageIndex) -> None:
    with node.launch("sh", "-c", "read line", requirements=("other",)) as sandbox:
        node.wait_state(sandbox.id, "running")
        made = {name for name in node.images() if "/requirements:" in name}
        node.answer("prune_images")
        assert made & node.images(), "one is in use"
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30).code == 0
    node.wait_until(lambda: node.ps() == [], "nothing uses it")
    node.answer("prune_images")
    assert not made & node.images()


def test_who_stops_the_last_launch_stops_the_build(node: Node, slow: PackageIndex) -> None:
    with node.launch("true", requirements=("greeting", "other")) as sandbox:
        node.wait_until(lambda: any(box["role"] == "build" for box in node.ps()), "pip runs", 60)
        sandbox.signal(signal.SIGTERM)
        assert "before the job began" in sandbox.wait(20).reason
        node.wait_until(lambda: not node.ps(), "the build has ended")


def test_nothing_of_the_nodes_pip_configuration_is_left(node: Node, index: PackageIndex) -> None:
    said(node, WHERE, "greeting==1.0")
    search = f"grep -r --include=* {PASSWORD} {FOLDER} /etc /home /root /tmp 2>/dev/null; env"
    with node.launch("sh", "-c", search, requirements=("greeting==1.0",)) as sandbox:
        assert PASSWORD not in text(sandbox.stdout)
    everything = [node.history(box["id"]) for box in node.ps(all=True)]
    assert PASSWORD not in json.dumps(everything)
    assert PASSWORD not in node.log.read_text()


def test_what_no_index_has(node: Node, index: PackageIndex) -> None:
    error = node.failure(BuildFailed, requirements=("greeting", "no-such-thing>=3"))
    assert "no package index of this node has no-such-thing>=3" in error.message
    assert "No matching distribution found" in error.detail
    assert PASSWORD not in error.detail


def test_an_index_that_cannot_be_reached(node: Node, index: PackageIndex) -> None:
    node.pip_conf.write_text(index.pip_conf(node.gateway).replace(f":{index.port}/", ":9/"))
    try:
        error = node.failure(BuildUnavailable, requirements=("greeting>=0.1",))
    finally:
        node.pip_conf.write_text(index.pip_conf(node.gateway))
    assert "index cannot be reached" in error.message
