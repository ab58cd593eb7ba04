"""``preload: auto`` under a real Airflow: what a DAG file was slow to import is there before the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.node import Node
from tests.support.package_index import serving
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

SLOW = """
import time
end = time.thread_time() + 0.2
while time.thread_time() < end: pass
"""
DAG = """
import sys
there = "slow" in sys.modules
import slow
from airflow.sdk import DAG, task

with DAG("heavy", schedule=None, description=f"there before: {there}"):

    @task
    def tell():
        print("there before:", there)

    tell()
"""


@pytest.fixture
def stack(node: Node) -> Iterator[ParsingStack]:
    with serving({"slow": SLOW}) as index, temporary_stack() as stack:
        node.pip_conf.write_text(index.pip_conf(node.gateway))
        stack.configure(sandboxed(node.socket, node.load("task")))
        stack.write("heavy.py", DAG)
        stack.write("heavy.yaml", "sandbox: {preload: auto, requirements: [slow]}\n")
        yield stack


def test_a_slow_import_is_learned_from_the_parse_and_done_before_the_next_parse_and_task(
    node: Node, stack: ParsingStack
) -> None:
    stack.start()
    stack.wait_for_dags("heavy")
    node.wait_until(
        lambda: stack.rows("select description from dag") == [("there before: True",)], "a parse found it", 60
    )
    stack.end("dag-processor")
    node.wait_until(
        lambda: any("slow" in pool["learned"] and pool["ready"] and not pool["stale"] for pool in node.pools()),
        "one is ready for the task",
        60,
    )
    assert "there before: True" in stack.run("sandbox", "test", "heavy", "tell")
    assert "left out" not in stack.parse_log("heavy.py")
