"""Spans of launches on a real node, as a collector gets them by OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from aircell.status import ExitStatus
from tests.support.collector import Collector, collecting, facts, milliseconds
from tests.support.jobs import request
from tests.support.node import Node

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def node(collector: Collector) -> Iterator[Node]:
    node = Node()
    node.config["tracing"] = {"endpoint": collector.endpoint}
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


def launch(node: Node, *argv: str, traceparent: str = "", **spec: Any) -> str:
    """The id of a task that has run to its end."""
    wanted = {**request(*argv, **spec), "role": "task", "traceparent": traceparent}
    with node.client.launch(wanted) as sandbox:
        assert sandbox.wait(30) == ExitStatus(code=0)
        node.wait_state(sandbox.id, "exited")
        return sandbox.id


def spans(node: Node, collector: Collector, sandbox: str) -> tuple[Span, list[Span]]:
    node.wait_until(lambda: collector.of(sandbox), f"the spans of {sandbox} come")
    found = collector.of(sandbox)
    assert found
    return found


def test_a_cold_and_a_warm_launch_step_by_step(node: Node, collector: Collector) -> None:
    cold = launch(node, "sleep", "0.3", traceparent=f"00-{TRACE}-{PARENT}-01")
    node.wait_until(lambda: [pool["ready"] for pool in node.pools()] == [1], "one is ready", 60)
    warm = launch(node, "sleep", "0.3")

    whole, below = spans(node, collector, cold)
    assert (whole.name, whole.trace_id.hex(), whole.parent_span_id.hex()) == ("aircell.launch", TRACE, PARENT)
    names = "queue create start import hand-over job removal"
    assert [span.name for span in below] == [f"aircell.{name}" for name in names.split()]
    assert {span.trace_id.hex() for span in below} == {TRACE}
    [job] = [span for span in below if span.name == "aircell.job"]
    assert 290 < milliseconds(job) < 2000
    assert sum(map(milliseconds, below)) == pytest.approx(milliseconds(whole), abs=0.01)
    assert facts(whole) == facts(whole) | {
        "aircell.kind": "cold", "aircell.backend": "cri", "aircell.image": "localhost/aircell/base:test",
        "aircell.role": "task", "aircell.test": "1", "aircell.exit.code": 0,
    }  # fmt: skip
    assert facts(whole)["aircell.digest"]
    assert whole.status.code == Status.STATUS_CODE_UNSET

    whole, below = spans(node, collector, warm)
    assert [span.name for span in below] == ["aircell.claim", "aircell.job", "aircell.removal"]
    assert (facts(whole)["aircell.kind"], whole.parent_span_id, whole.trace_id.hex() != TRACE) == ("warm", b"", True)
    assert milliseconds(below[0]) < 200
    assert facts(whole)["aircell.shape"] == facts(spans(node, collector, cold)[0])["aircell.shape"]
    assert collector.services == {"aircelld"}


def test_a_launch_that_failed_says_of_what(node: Node, collector: Collector) -> None:
    with node.launch("true", image="localhost/aircell/nowhere:1", pull_policy="never") as sandbox:
        node.wait_state(sandbox.id, "failed")
    whole, below = spans(node, collector, sandbox.id)
    assert whole.status.code == Status.STATUS_CODE_ERROR
    assert whole.status.message.startswith("ImageNotFound: ")
    assert facts(whole)["error.type"] == "ImageNotFound"
    assert [span.name for span in below] == ["aircell.queue", "aircell.removal"]


def test_what_was_not_sent_yet_is_sent_when_aircelld_stops(node: Node, collector: Collector) -> None:
    sandbox = launch(node, "true")
    node.restart()
    assert collector.of(sandbox)


def test_a_collector_that_is_away_disturbs_nobody(node: Node) -> None:
    with node.configured(tracing={"endpoint": "http://127.0.0.1:9/v1/traces"}):
        for _ in range(3):
            launch(node, "true")
    assert node.alive
    assert "Traceback" not in node.log.read_text()
