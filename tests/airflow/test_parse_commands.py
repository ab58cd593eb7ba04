"""The commands that parse: which of them do it in sandboxes."""

from __future__ import annotations

import json

import pytest

from tests.support.node import Node
from tests.support.parsing import merged, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

WHO = """
import os
from airflow.sdk import DAG
dag = DAG("who", description=f"uid {os.getuid()}")
"""


def test_one_run_of_the_dag_processor_and_its_import_errors(node: Node) -> None:
    with temporary_stack() as stack:
        stack.configure(sandboxed(node.socket, node.load("task")))
        stack.write("who.py", WHO)
        stack.write("bad.py", "from airflow.sdk import DAG\nraise LookupError('inside')\n")
        stack.run("dag-processor", "--num-runs", "1")
        assert stack.rows("select description from dag") == [("uid 50000",)]
        shown = stack.attempt("dags", "list-import-errors", "-o", "json")
        [error] = json.loads(shown.stdout.splitlines()[-1])  # above it Airflow warns of whatever the host lacks
        assert (error["filepath"], "LookupError: inside" in error["error"]) == ("bad.py", True)
        assert "Traceback" not in shown.stderr


def test_standalone(node: Node) -> None:
    with temporary_stack() as stack:
        both = merged(sandboxed(node.socket, node.load("task")), {"sandbox_runtime": {"task_execution_runtime": "cri"}})
        stack.configure(both)
        stack.write("who.py", WHO)
        stack._spawn("standalone")
        stack.wait_for_dags("who")
        stack.end("standalone")
        assert stack.rows("select description from dag") == [("uid 50000",)]
