"""How runs of DAGs end, in a form in which two runs can be compared."""

from __future__ import annotations

import hashlib
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from tests.support.airflow_stack import AirflowStack, Json, instance_name, wait_until

LONG = 1000


@dataclass(frozen=True)
class Outcome:
    """How one task instance ended."""

    state: str | None
    tries: int
    xcoms: Mapping[str, Any]
    logs: tuple[Mapping[str, list[Any]], ...]
    """For each try the lines by logger: between loggers, which have sockets of their own, the order is chance."""


Outcomes = Mapping[str, Mapping[str, Outcome]]
"""By DAG and task instance."""
PARITY = (
    "outcomes",
    "exits",
    "xcom",
    "flow",
    "waiting",
    "output",
    "virtualenv",
    "callbacks",
    "ended_from_outside",
)


def run_all(stack: AirflowStack, run_id: str) -> Outcomes:
    """Runs every DAG of the parity suite at the same time."""
    for dag_id in PARITY:
        stack.trigger(dag_id, run_id)
    for task_id, end in ENDED_BY.items():
        wait_until_begun(stack, "ended_from_outside", run_id, task_id)
        end(stack, run_id, task_id)
    for dag_id in PARITY:
        stack.wait_for_run(dag_id, run_id, seconds=600)
    return {dag_id: outcomes(stack, dag_id, run_id) for dag_id in PARITY}


def outcomes(stack: AirflowStack, dag_id: str, run_id: str) -> Mapping[str, Outcome]:
    """Of every task instance of a run."""
    return {instance_name(each): _outcome(stack, dag_id, run_id, each) for each in stack.task_instances(dag_id, run_id)}


def _outcome(stack: AirflowStack, dag_id: str, run_id: str, instance: Json) -> Outcome:
    task_id, index, tries = instance["task_id"], instance["map_index"], instance["try_number"]
    logs = [stack.log(dag_id, run_id, task_id, attempt, index) for attempt in range(1, tries + 1)]
    xcoms = stack.xcoms(dag_id, run_id, task_id, index)
    return Outcome(
        state=instance["state"],
        tries=tries,
        xcoms={key: _short(value) for key, value in xcoms.items()},
        logs=tuple(by_logger(lines, run_id) for lines in logs),
    )


def _short(value: Any) -> Any:
    """Long text by its hash, so that a difference can be read."""
    if isinstance(value, str) and len(value) > LONG:
        return f"{len(value)} characters, SHA-256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


# --- tasks that somebody ends -----------------------------------------------------------------------------------


def wait_until_begun(stack: AirflowStack, dag_id: str, run_id: str, task_id: str, seconds: float = 240) -> None:
    """Returns once the task, a ``Slow`` of ``dags/parity_callbacks.py``, has said that it runs."""
    path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/began"
    wait_until(lambda: stack.get(path, ok=False), f"{task_id} began", seconds)


def supervisor_of(instance: Json) -> psutil.Process:
    """The worker process that supervises a task instance; it says so in its title."""
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("airflow worker -- LocalExecutor:") and instance["id"] in title:
            return process
    raise LookupError(f"no worker supervises {instance['task_id']}")


def _mark_failed(stack: AirflowStack, run_id: str, task_id: str) -> None:
    stack.set_state("ended_from_outside", run_id, task_id, "failed")
    # The state is there at once; the log is complete only when the supervisor has learnt of it and ended the task.
    wait_until(
        lambda: "Task killed!" in stack.log_text("ended_from_outside", run_id, task_id), "the task was killed", 60
    )


def _terminate_worker(stack: AirflowStack, run_id: str, task_id: str) -> None:
    instance = stack.task_instance("ended_from_outside", run_id, task_id)
    supervisor_of(instance).send_signal(signal.SIGTERM)


ENDED_BY: Mapping[str, Callable[[AirflowStack, str, str], None]] = {
    "marked_failed": _mark_failed,
    "worker_gets_sigterm": _terminate_worker,
}

# --- logs without what always varies ----------------------------------------------------------------------------

_VARYING = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"/tmp/(\S*/)?(venv|airflowtmp|tmp)[\w-]+"), "TEMPORARY"),
    (re.compile(r"(?<=DAG bundles loaded: ).*"), "BUNDLES"),  # a sandbox knows the one that it has
    (re.compile(r"/(work|opt|usr|root|home)/[\w./-]*/(bin/python[\d.]*|site-packages)"), r"PYTHON"),
    (re.compile(r"0x[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"\b[Pp][Ii][Dd][ :=]+\d+"), "PID"),
    (re.compile(r"\b\d+\.\d+\b"), "NUMBER"),
)
_OURS = re.compile(r"^aircell(\.|$)")
_ONCE = "Skipping masking for a secret as it's too short"
"""Said once a process, and a stock task is a fork of a worker that may have said it."""


def by_logger(lines: list[Json], run_id: str) -> Mapping[str, list[Any]]:
    """The lines of Airflow and of the task, ours left out."""
    found: dict[str, list[Any]] = defaultdict(list)
    for line in lines:
        name = line.get("logger") or ""
        if not _OURS.match(name):
            text = constant(line.get("event") or "", run_id)
            if not text.startswith(_ONCE):
                found[name].append((line.get("level"), text, *_error(line, run_id)))
    return {name: lines for name, lines in found.items() if lines}


def _error(line: Json, run_id: str) -> list[Any]:
    """Type, message and functions of each exception in a line's traceback."""
    return [
        (error["exc_type"], constant(error["exc_value"], run_id), [frame["name"] for frame in error["frames"]])
        for error in line.get("error_detail") or []
    ]


def constant(text: str, run_id: str) -> str:
    """The text with names instead of what differs from run to run."""
    text = text.replace(run_id, "RUN")
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text
