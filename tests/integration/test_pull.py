"""Pulls from a real registry, and launches that have to wait for one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aircell.errors import ImageNotFound, ImagePullFailed, ImageUnauthorized, InvalidSpec, RefusedByPolicy
from aircell.status import ExitStatus
from tests.support.archive_image import ArchiveImage
from tests.support.images import archive
from tests.support.jobs import events, text
from tests.support.node import Node
from tests.support.registry import Registry, serving

PASSWD = "root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\nworker:x:1234:0::/:/bin/sh\n"


@pytest.fixture(scope="module")
def shop(node: Node) -> Iterator[Registry]:
    """A registry whose image knows a few users more."""
    with serving(ArchiveImage(archive("base"), {"etc/passwd": PASSWD})) as registry:
        registry.any_name = True
        node.allow_plain_http(registry.host)
        yield registry


@pytest.fixture
def slow(shop: Registry) -> Iterator[Registry]:
    """The same, giving nothing out until the test lets it."""
    shop.open.clear()
    yield shop
    shop.open.set()


def test_a_missing_image_is_pulled_and_the_events_say_so(node: Node, shop: Registry) -> None:
    reference = shop.reference("events")
    with node.launch("true", image=reference) as sandbox:
        came = events(sandbox)
    assert [event["event"] for event in came if event["event"] != "pulling"] == [
        "queued", "creating", "starting", "running", "exited",
    ]  # fmt: skip
    assert came[1] == {"event": "pulling", "at": came[1]["at"], "image": reference, "done": 0, "total": 0}
    creating = next(event for event in came if event["event"] == "creating")
    assert creating["digest"].endswith(shop.image.index)


def test_one_pull_serves_all_who_wait_for_it(node: Node, slow: Registry) -> None:
    reference = slow.reference("together")
    sandboxes = [node.launch("true", image=reference) for _ in range(4)]
    node.wait_until(lambda: [box["state"] for box in node.ps()] == ["pulling"] * 4, "all four wait for the pull")
    slow.open.set()
    assert [sandbox.wait(60) for sandbox in sandboxes] == [ExitStatus(code=0)] * 4
    assert len([path for path in slow.asked if "/together/" in path]) <= 2  # HEAD and GET of one resolution


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_launch_that_waits_for_its_image(node: Node, slow: Registry, number: signal.Signals) -> None:
    with node.launch("true", image=slow.reference(f"signal{number}")) as sandbox:
        node.wait_until(lambda: node.ps()[-1]["state"] == "pulling", "it is pulling")
        began = time.monotonic()
        sandbox.signal(number)
        assert "before the job began" in sandbox.wait(10).reason
        assert time.monotonic() - began < 2


def test_a_worker_that_goes_away_ends_a_launch_that_waits_for_its_image(node: Node, slow: Registry) -> None:
    with node.launch("true", image=slow.reference("gone")) as sandbox:
        node.wait_until(lambda: node.ps()[-1]["state"] == "pulling", "it is pulling")
    node.wait_until(lambda: node.ps() == [], "the launch is given up")
    assert node.history(sandbox.id)[-1]["exit"]["reason"] == "the worker went away before the job began"


def test_stop_ends_a_launch_that_waits_for_its_image(node: Node, slow: Registry) -> None:
    with node.launch("true", image=slow.reference("stop")) as sandbox:
        node.wait_until(lambda: node.ps()[-1]["state"] == "pulling", "it is pulling")
        node.answer("stop", sandbox=sandbox.id)
        assert "stopped by a request to aircelld" in sandbox.wait(10).reason


def test_one_that_gives_up_does_not_end_the_pull_of_another(node: Node, slow: Registry) -> None:
    reference = slow.reference("shared")
    with node.launch("true", image=reference) as patient, node.launch("true", image=reference) as impatient:
        node.wait_until(lambda: [box["state"] for box in node.ps()] == ["pulling"] * 2, "both wait for the pull")
        impatient.signal(signal.SIGTERM)
        impatient.wait(10)
        slow.open.set()
        assert patient.wait(60) == ExitStatus(code=0)


def test_pull_policies(node: Node, shop: Registry) -> None:
    reference = shop.reference("policies")

    def resolved(policy: str) -> bool:
        before = len(shop.asked)
        with node.launch("true", image=reference, pull_policy=policy) as sandbox:
            sandbox.wait(60)
        return len(shop.asked) > before

    with pytest.raises(ImageNotFound, match="pull_policy is `never`"):
        resolved("never")
    assert [resolved("missing"), resolved("missing"), resolved("never"), resolved("always")] == [
        True, False, False, True,
    ]  # fmt: skip


def test_an_image_that_the_registry_does_not_have(node: Node, shop: Registry) -> None:
    node.failure(ImageNotFound, image=shop.reference("x").replace(":latest", ":other"))


def test_a_registry_that_is_broken_may_be_tried_again(node: Node, shop: Registry) -> None:
    shop.status = 503
    try:
        node.failure(ImagePullFailed, image=shop.reference("broken"))
    finally:
        shop.status = 200


def test_credentials_are_named_by_the_spec_and_read_by_aircelld_alone(
    node: Node, shop: Registry, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    shop.credentials = ("worker", "s3cret")
    settings = {"shop": {"registry": shop.host, "username": "worker", "password_file": str(secret)}}
    try:
        with node.configured(registry_credentials=settings):
            node.failure(ImageUnauthorized, image=shop.reference("private"))
            unknown = node.failure(InvalidSpec, image=shop.reference("private"), registry_credentials="other")
            assert f"no registry credentials called 'other' for {shop.host}; it has: shop" in str(unknown)
            with node.launch("true", image=shop.reference("private"), registry_credentials="shop") as sandbox:
                assert sandbox.wait(60) == ExitStatus(code=0)
            assert "s3cret" not in str(node.answer("inspect", sandbox=sandbox.id))
    finally:
        shop.credentials = None
    assert "s3cret" not in node.log.read_text()


def test_the_operation_pull_tells_its_progress_and_the_image(node: Node, shop: Registry) -> None:
    reference = shop.reference("operation")
    answers = list(node.client.call("pull", backend="cri", image=reference))
    assert answers[0] == {"ok": True}
    assert {answer["event"] for answer in answers[1:-1]} == {"pulling"}
    assert answers[-1]["image"]["reference"] == reference
    assert reference in {tag for image in node.answer("images")["images"] for tag in image["tags"]}


def test_a_user_is_looked_up_in_the_image(node: Node, shop: Registry) -> None:
    with node.launch("id", "-u", image=shop.reference("users"), user="worker") as sandbox:
        assert text(sandbox.stdout) == "1234\n"


def test_a_name_that_the_image_maps_to_uid_0_gets_no_job(node: Node, shop: Registry) -> None:
    user = {"image": shop.reference("users"), "user": "toor"}
    assert "'toor' is uid 0" in str(node.failure(RefusedByPolicy, **user))
    with node.configured(policy={"root": True}), node.launch("id", "-u", **user) as sandbox:
        assert text(sandbox.stdout) == "0\n"
