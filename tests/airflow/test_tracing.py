"""Spans of a sandbox hang below Airflow's own span of the task that it is for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.conftest import SANDBOXED, local_bundle
from tests.support.airflow_stack import AirflowStack
from tests.support.collector import Collector, collecting, facts
from tests.support.node import Node

pytestmark = pytest.mark.timeout(300)

DAG = """
from airflow.sdk import DAG, task

with DAG("traced", schedule=None):

    @task
    def nothing(): pass

    nothing()
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def stack(node: Node, collector: Collector) -> Iterator[AirflowStack]:
    home = Path(tempfile.mkdtemp(prefix="at", dir="/tmp"))
    home.chmod(0o755)
    (home / "dags").mkdir()
    (home / "dags" / "traced.py").write_text(DAG)
    stack = AirflowStack(
        home,
        bundles=[local_bundle("dags", home / "dags")],
        config={
            "traces": {"otel_on": "True"},
            "sandbox_runtime": {"image": node.load("task"), "socket_path": node.socket, "autostart": "False"},
        },
        environment={
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.endpoint,
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_SERVICE_NAME": "airflow",
        },
    )
    try:
        stack.start()
        with node.configured(tracing={"endpoint": collector.endpoint}), stack.scheduler(SANDBOXED):
            yield stack
    finally:
        stack.stop()
        shutil.rmtree(home)


def test_the_spans_of_a_sandbox_are_below_that_of_its_task(
    node: Node, stack: AirflowStack, collector: Collector
) -> None:
    stack.trigger("traced", "once")
    assert stack.wait_for_run("traced", "once") == "success"

    def complete() -> bool:
        names = {span.name for span in collector.spans}
        return "aircell.launch" in names and any(name.startswith("task_run") for name in names)

    node.wait_until(complete, "both spans come", 60)
    [launch] = [span for span in collector.spans if span.name == "aircell.launch"]
    [task] = [span for span in collector.spans if span.span_id == launch.parent_span_id]
    assert task.name == "task_run.nothing"
    assert task.trace_id == launch.trace_id
    assert facts(launch)["aircell.task"] == "nothing"
    assert collector.services >= {"airflow", "aircelld"}
