"""What the demo shows: a table of all that ran, read from Airflow's API and log files, and where to look further."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from tests.support.airflow_stack import AirflowStack, Json
from tests.support.node import Node


class Row(NamedTuple):
    """One parse or one attempt of a task."""

    dag: str
    task: str
    image: str
    sandbox: str
    latency: str
    state: str


def table(stack: AirflowStack, dag_ids: Sequence[str], run_id: str) -> Table:
    """The parses and the task attempts of these DAGs.

    ``queued -> running`` ends where the task's process has its sandbox and starts; for a parse it is the time from
    the request for a sandbox.
    """
    shown = Table("DAG", "task", "image", "sandbox", title="What ran, and where")
    shown.add_column("queued -> running ms", justify="right")
    shown.add_column("state")
    for dag_id in dag_ids:
        for row in (*_parses(stack, dag_id), *_attempts(stack, dag_id, run_id)):
            shown.add_row(*row)
        shown.add_section()
    return shown


def evidence(stack: AirflowStack, dag_ids: Sequence[str], run_id: str) -> str:
    """What the tasks logged and handed on, as Airflow has it."""
    lines = []
    for dag_id in dag_ids:
        for task in _tasks(stack, dag_id, run_id):
            printed = [
                line["event"]
                for line in stack.log(dag_id, run_id, task["task_id"], task["try_number"])
                if line.get("logger") == "task.stdout"
            ]
            value = stack.xcoms(dag_id, run_id, task["task_id"]).get("return_value")
            lines.append(f"  {dag_id}.{task['task_id']}: log {printed}, XCom {value}")
    return "\n".join(["What the tasks printed and returned, from their logs and XComs:", *lines])


def inspection(node: Node) -> str:
    """Commands that look into the node while it is up."""
    commands = [f"aircell ps --socket {node.socket}", *node.engine_commands()]
    return "\n  ".join(["Look into it while it runs (--keep leaves it up):", *commands])


def _parses(stack: AirflowStack, dag_id: str) -> Iterator[Row]:
    for path in sorted((stack.home / "logs" / "dag_processor").rglob(f"{dag_id}.py.log")):
        lines = _read(path)
        requested, ready = _event(lines, "Sandbox requested"), _event(lines, "Sandbox ready")
        latency = _between(requested.get("timestamp"), ready.get("timestamp"))
        yield _row(dag_id, "(parse)", requested, latency, "parsed" if ready else "failed")


def _attempts(stack: AirflowStack, dag_id: str, run_id: str) -> Iterator[Row]:
    for task in _tasks(stack, dag_id, run_id):
        tries = stack.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task['task_id']}/tries")["task_instances"]
        for attempt in sorted(tries, key=lambda each: each["try_number"]):
            number: int = attempt["try_number"]
            lines = stack.log(dag_id, run_id, task["task_id"], number)
            latency = _between(attempt["queued_when"], _event(lines, "Sandbox ready").get("timestamp"))
            name = task["task_id"] if len(tries) == 1 else f"{task['task_id']}, try {number}"
            yield _row(dag_id, name, _event(lines, "Sandbox requested"), latency, attempt["state"])


def _tasks(stack: AirflowStack, dag_id: str, run_id: str) -> list[Json]:
    """In the order in which they ran."""
    return sorted(stack.task_instances(dag_id, run_id), key=lambda each: each["queued_when"] or "")


def _row(dag_id: str, task: str, requested: Json, latency: str, state: str) -> Row:
    image: str = requested.get("image", "")
    return Row(dag_id, task, image.removeprefix("localhost/"), requested.get("sandbox", ""), latency, state)


def _read(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _event(lines: list[Json], text: str) -> Json:
    """The log line with that text; empty when the sandbox did not come so far."""
    return next((line for line in lines if line["event"] == text), {})


def _between(start: str | None, end: str | None) -> str:
    if start is None or end is None:
        return "-"
    return f"{(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000:.0f}"
