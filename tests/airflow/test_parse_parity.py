"""The same folder, parsed by stock Airflow and then in sandboxes: nothing changes in the database."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.airflow_stack import wait_until
from tests.support.node import Node
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

pytestmark = pytest.mark.timeout(300)

RICH = """
from datetime import datetime, timedelta
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset, Param, TaskGroup, setup, task, teardown

def cry(context): pass

with DAG(
    "rich", schedule="@daily", start_date=datetime(2026, 1, 1), catchup=True, tags=["b", "a"], max_active_runs=3,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=3)}, params={"n": Param(1, type="integer")},
    on_failure_callback=cry, access_control={"Viewer": {"DAGs": {"can_read"}}}, doc_md="# Rich",
):
    @setup
    def before(): pass

    @teardown
    def after(): pass

    @task(queue="other", execution_timeout=timedelta(hours=1))
    def number(value): return value

    with TaskGroup("group"):
        shell = BashOperator(task_id="shell", bash_command="echo {{ ds }}", outlets=[Asset("s3://b/o")])
    before() >> number.expand(value=[1, 2]) >> shell >> after()

with DAG("by_asset", schedule=[Asset("s3://b/o")]):
    BashOperator(task_id="one", bash_command="true")
"""
BROKEN = """
from airflow.sdk import DAG
def fail():
    raise LookupError("what the user did wrong")
with DAG("never"):
    fail()
"""
UNSERIALIZABLE = """
from airflow.sdk import DAG, task
dag = DAG("cycle")
with dag:
    @task
    def one(): pass
    @task
    def two(): pass
    a, b = one(), two()
    a >> b >> a
"""


def known(stack: ParsingStack) -> dict[str, object]:
    """Whatever a parse decides about."""
    return {
        "versions": stack.rows("select id, dag_id, version_number from dag_version order by dag_id"),
        "hashes": stack.rows("select dag_id, dag_hash, dag_version_id from serialized_dag order by dag_id"),
        "code": stack.rows("select dag_id, fileloc, source_code_hash from dag_code order by dag_id"),
        "dags": stack.rows(
            "select dag_id, fileloc, relative_fileloc, owners, is_stale, max_active_runs, timetable_summary,"
            " next_dagrun, bundle_name from dag order by dag_id"
        ),
        "errors": stack.errors(),
    }


PARSED = {"file": '"event":"Sandbox ready"', "image": '"kind":"resident"'}
"""What is logged when a file is about to be parsed, by ``parse_isolation``."""


def parsed_again(stack: ParsingStack, name: str, isolation: str) -> bool:
    """The second sandbox of a file is there, so the result of the first was stored."""
    return stack.parse_log(name).count(PARSED[isolation]) > 1


@pytest.mark.parametrize("isolation", PARSED)
def test_a_sandbox_changes_nothing(node: Node, isolation: str) -> None:
    image = node.load("task")
    with temporary_stack() as stack:
        stack.write("rich.py", RICH)
        stack.write("broken.py", BROKEN)
        stack.write("cycle.py", UNSERIALIZABLE)
        stack.start()
        stack.wait_for_dags("rich", "by_asset")
        stack.wait_for_error("broken.py", "LookupError: what the user did wrong")
        stack.wait_for_error("cycle.py", "Cycle")
        stack.stop()
        stock = known(stack)
        stack.configure(sandboxed(node.socket, image, parse_isolation=isolation))
        stack.start()
        for name in ("rich.py", "broken.py", "cycle.py"):
            wait_until(
                partial(parsed_again, stack, name, isolation), f"a parse of {name} in a sandbox", 120, why=stack.why
            )
        stack.stop()
        assert known(stack) == stock
