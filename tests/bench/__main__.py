"""``just bench``: how long small tasks take on stock Airflow and in sandboxes, one after the other on this machine.

Medians of one chain of empty tasks, from the times that Airflow itself records: ``queued -> end`` is what a user
waits for a task, ``start -> end`` what the worker spends on it.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.support.airflow_stack import AirflowStack, Json
from tests.support.images import reference
from tests.support.node import Node

DAG_ID = "bench"
DAG = """
from airflow.sdk import chain, dag, task

@dag(schedule=None)
def bench():
    @task
    def small() -> None: ...

    chain(*[small.override(task_id=f"t{number}")() for number in range({tasks})])

bench()
"""
RUNTIMES: Mapping[str, Mapping[str, str]] = {
    "stock": {},
    "cri": {"AIRFLOW__SANDBOX_RUNTIME__TASK_EXECUTION_RUNTIME": "cri"},
}


def main(tasks: Annotated[int, typer.Option(help="Tasks in the chain.", min=1)] = 16) -> None:
    """Measures stock Airflow and sandboxes, and prints the medians in milliseconds."""
    table = Table("runtime", title=f"Medians of {tasks} small tasks, ms")
    for column in ("queued -> end", "start -> end"):
        table.add_column(column, justify="right")
    with _node() as node, _airflow(node, tasks) as stack:
        for name, environment in RUNTIMES.items():
            with stack.scheduler(environment):
                stack.trigger(DAG_ID, name)
                state = stack.wait_for_run(DAG_ID, name, seconds=60 + 20 * tasks)
            if state != "success":
                typer.echo(f"the run on {name} ended as {state}: {stack.states(DAG_ID, name)}", err=True)
                raise typer.Exit(1)
            instances = stack.task_instances(DAG_ID, name)
            table.add_row(name, *(_median(instances, since) for since in ("queued_when", "start_date")))
    Console().print(table)


@contextmanager
def _node() -> Iterator[Node]:
    node = Node()
    try:
        node.start()
        node.load("task")
        yield node
    finally:
        node.close()


@contextmanager
def _airflow(node: Node, tasks: int) -> Iterator[AirflowStack]:
    home = Path(tempfile.mkdtemp(prefix="aircell-bench-"))
    home.chmod(0o755)  # a sandbox's user reads the DAG file below it
    dags = home / "dags"
    dags.mkdir()
    (dags / "bench.py").write_text(DAG.replace("{tasks}", str(tasks)))
    (dags / "bench.yaml").write_text(f"sandbox:\n  image: {reference('task')}\n")
    bundle = {
        "name": "bench",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(dags)},
    }
    stack = AirflowStack(home=home, bundles=[bundle], config={"sandbox_runtime": {"socket_path": node.socket}})
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(home)


def _median(instances: list[Json], since: str) -> str:
    times = [_time(each["end_date"]) - _time(each[since]) for each in instances]
    return f"{statistics.median(times) * 1000:.0f}"


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    typer.run(main)
