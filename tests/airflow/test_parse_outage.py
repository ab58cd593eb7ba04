"""What is not the files' fault leaves their DAGs alone: aircelld is away, and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.airflow_stack import wait_until
from tests.support.node import Node
from tests.support.parsing import FAST, ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

STALE_SECONDS = int(FAST["dag_processor"]["stale_dag_threshold"])


KEPT = """
from airflow.sdk import DAG
def tell(context):
    print("the callback ran")
dag = DAG("kept", on_failure_callback=tell)
"""


@pytest.fixture
def stack(node: Node) -> Iterator[ParsingStack]:
    with temporary_stack() as stack:
        stack.configure(sandboxed(node.socket, node.load("task")))
        stack.write("kept.py", KEPT)
        stack.start()
        stack.wait_for_dags("kept")
        yield stack


def test_an_outage_keeps_dags_and_callbacks_says_why_and_is_forgotten(stack: ParsingStack, node: Node) -> None:
    away = "There is no aircelld socket"
    node.stop()
    try:
        error = stack.wait_for_error("kept.py", f"its DAGs stay as they are. {away} at {node.socket}")
        assert "Start `aircelld`" in error
        stack.ask_for_callback("kept", "kept.py")
        enough = stack.parse_log("kept.py").count(away) + 3
        long_enough = time.monotonic() + 2 * STALE_SECONDS + 2
        wait_until(
            lambda: stack.parse_log("kept.py").count(away) >= enough and time.monotonic() > long_enough,
            "more attempts",
            60,
            why=stack.why,
        )
        assert stack.stale() == {"kept": False}
        assert stack.rows("select has_import_errors from dag") == [(0,)]
        assert stack.rows("select count(*) from callback") == [(0,)]
        assert "the callback ran" not in stack.parse_log("kept.py")
    finally:
        node.start()
    # The callback comes first, and proves nothing about the file's DAGs.
    wait_until(lambda: mended_without_a_gap(stack), "no error", 60, why=stack.why)
    wait_until(lambda: "the callback ran" in stack.parse_log("kept.py"), "the callback", 60, why=stack.why)


def mended_without_a_gap(stack: ParsingStack) -> bool:
    assert stack.stale() == {"kept": False}
    return "kept.py" not in stack.errors()


def test_an_aircelld_that_hangs_does_not_hold_up_the_dag_processor(stack: ParsingStack, node: Node) -> None:
    rounds = "Refreshing bundle dags"
    os.kill(node.pid, signal.SIGSTOP)
    try:
        time.sleep(1)  # a launch that was accepted before is through
        before = stack.component_log("dag-processor").count(rounds)
        stack.wait_for_error("kept.py", "did not answer within 10 s", 40)
        assert stack.component_log("dag-processor").count(rounds) >= before + 3
        assert stack.stale() == {"kept": False}
    finally:
        os.kill(node.pid, signal.SIGCONT)
    stack.wait_for_no_error("kept.py")
