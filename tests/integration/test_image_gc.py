"""Images that nobody uses any more are removed: those that aircelld brought, and no other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aircell.status import ExitStatus
from images.build import gzip_archive
from tests.support.archive_image import ArchiveImage
from tests.support.docker_node import DockerNode
from tests.support.images import reference
from tests.support.jobs import request
from tests.support.node import Node
from tests.support.registry import Image, Registry, serving

BACKENDS = {"cri": Node, "docker": DockerNode}


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Node]:
    node = BACKENDS[request.param]()
    node.config["policy"] = {"networks": ["none"]}
    try:
        node.start()
        node.load("base")
        yield node
    finally:
        node.close()


@pytest.fixture
def shop(engine: Node) -> Iterator[Registry]:
    """Serves an image that only aircelld ever asks for; afterwards none of it is left on the node."""
    with serving(ArchiveImage(gzip_archive("base"), {"etc/motd": "for a while\n"})) as registry:
        registry.any_name = True
        engine.allow_plain_http(registry.host)
        yield registry
    engine.wait_until(lambda: engine.ps() == [], "every sandbox is gone")
    prune(engine)


def backend(node: Node) -> str:
    return str(next(iter(node.config["backends"])))


def pull(node: Node, image: str) -> None:
    *_, last = node.client.call("pull", backend=backend(node), image=image)
    assert last["image"]["tags"] == [image]


def pull_another(node: Node) -> str:
    """Another image, by its name."""
    with serving(Image()) as registry:
        node.allow_plain_http(registry.host)
        pull(node, registry.reference())
    return registry.reference()


def prune(node: Node, **fields: Any) -> list[str]:
    """The names of what was removed."""
    removed = node.answer("prune_images", backend=backend(node), **fields)["removed"]
    return [name for image in removed for name in image["tags"]]


def names(node: Node) -> set[str]:
    return {name for image in node.answer("images", backend=backend(node))["images"] for name in image["tags"]}


def fetch(node: Node, image: str) -> None:
    """Pulls it as somebody does who knows nothing of aircelld."""
    if isinstance(node, DockerNode):
        node.dockerd.pull(image)
    else:
        node.ctr("images", "pull", "--plain-http", image)
        node.wait_until(lambda: image in names(node), "the engine shows the image")


def give_name(node: Node, image: str, name: str) -> None:
    """As somebody else does."""
    if isinstance(node, DockerNode):
        node.dockerd.tag(image, name)
    else:
        node.ctr("images", "tag", image, name)
        node.wait_until(lambda: name in names(node), "the engine shows the name")


def take_name(node: Node, name: str) -> None:
    if isinstance(node, DockerNode):
        node.dockerd.untag(name)
    else:
        node.ctr("images", "rm", name)
        node.wait_until(lambda: name not in names(node), "the engine forgets the name")


def test_what_aircelld_pulled_goes_and_what_others_brought_stays(engine: Node) -> None:
    one, two = pull_another(engine), pull_another(engine)
    assert prune(engine, dry_run=True) == [one, two]
    assert names(engine) >= {one, two}
    assert prune(engine) == [one, two]
    assert not names(engine) & {one, two}
    assert reference("base") in names(engine)
    assert prune(engine) == []


def test_an_image_that_was_there_before_it_was_pulled_is_not_ours(engine: Node) -> None:
    with serving(Image()) as registry:
        engine.allow_plain_http(registry.host)
        fetch(engine, registry.reference())
        pull(engine, registry.reference())
    assert prune(engine) == []
    take_name(engine, registry.reference())


def test_an_image_in_use_stays_until_its_sandbox_has_ended(engine: Node, shop: Registry) -> None:
    image = shop.reference()
    with engine.launch("sh", "-c", "read line", image=image) as sandbox:
        engine.wait_state(sandbox.id, "running")
        assert prune(engine) == []
        engine.restart()
        assert prune(engine) == []
        sandbox.requests.sendall(b"\n")
        assert sandbox.wait(30) == ExitStatus(code=0)
    engine.wait_until(lambda: engine.ps() == [], "the sandbox is gone")
    assert prune(engine) == [image]


def test_an_image_that_is_being_pulled_stays(engine: Node, shop: Registry) -> None:
    pull(engine, shop.reference())
    shop.open.clear()
    with engine.launch("true", image=shop.reference(), pull_policy="always") as sandbox:
        engine.wait_state(sandbox.id, "pulling")
        assert prune(engine) == []
        shop.open.set()
        assert sandbox.wait(60) == ExitStatus(code=0)


def test_the_image_of_a_pool_stays(engine: Node, shop: Registry) -> None:
    task = {**request("true", image=shop.reference()), "role": "task", "backend": backend(engine)}
    with engine.client.launch(task) as sandbox:
        assert sandbox.wait(60) == ExitStatus(code=0)
    engine.wait_until(lambda: engine.ps() == [], "the task's sandbox is gone")
    assert engine.pools()
    assert prune(engine) == []
    engine.clean(60)  # which ends the pools
    assert prune(engine) == [shop.reference()]


def test_an_image_to_which_somebody_gave_a_name_stays(engine: Node) -> None:
    image = pull_another(engine)
    give_name(engine, image, "localhost/mine:1")
    assert prune(engine) == []
    take_name(engine, "localhost/mine:1")
    assert prune(engine) == [image]


def test_unused_images_go_by_themselves_unless_they_are_pinned_or_among_the_last_used(engine: Node) -> None:
    pinned, old, older, last = (pull_another(engine) for _ in range(4))
    policy = {"unused_seconds": 0.1, "keep": 1, "interval": 0.2, "pinned": [pinned]}
    with engine.configured(image_gc=policy):
        engine.wait_until(lambda: not names(engine) & {old, older}, "those that nothing keeps are removed")
        assert prune(engine) == [last]
        assert prune(engine) == []
    assert prune(engine) == [pinned]


def test_a_full_disk_costs_the_images_unused_for_longest(engine: Node) -> None:
    images = [pull_another(engine) for _ in range(2)]
    with engine.configured(image_gc={"disk_percent": 0.001, "interval": 0.1}):
        engine.wait_until(lambda: f"({images[1]})" in engine.log.read_text(), "both are removed")
    assert f"({images[0]})" in engine.log.read_text().partition(f"({images[1]})")[0]
    assert not names(engine) & set(images)
    assert reference("base") in names(engine)


def test_a_launch_never_loses_its_image_to_a_prune(engine: Node, shop: Registry) -> None:
    """Each one runs, be its image there, just removed or being removed."""
    done = threading.Event()
    removed: list[str] = []

    def keep_pruning() -> None:
        while not done.is_set():
            removed.extend(prune(engine))

    pruning = threading.Thread(target=keep_pruning)
    pruning.start()
    try:
        for step in range(8):
            with engine.launch("true", image=shop.reference()) as sandbox:
                assert sandbox.wait(60) == ExitStatus(code=0)
            engine.wait_until(lambda: engine.ps() == [], "nothing uses the image")
            time.sleep(step * 0.005)
    finally:
        done.set()
        pruning.join()
    assert removed, "nothing was removed meanwhile: this proves nothing"


def test_the_record_of_images_outlives_aircelld(engine: Node) -> None:
    image = pull_another(engine)
    [before] = json.loads((engine.state / "images.json").read_text())
    engine.restart()
    assert json.loads((engine.state / "images.json").read_text()) == [before]
    assert before["names"] == [image]
    assert prune(engine) == [image]
    assert json.loads((engine.state / "images.json").read_text()) == []
