"""A small task: what a user waits for it, and what the worker spends on it, by the times that Airflow records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from tests.bench.kinds import KINDS
from tests.bench.lab import STOCK, Lab
from tests.bench.results import Series
from tests.support.airflow_stack import Json

LEGS: Mapping[str, str] = {"queued to end": "queued_when", "start to end": "start_date"}
"""From when a leg runs to the task's end."""


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """One task at a time, on each way in turn."""
    ways = [*lab.ways, *lab.containers]
    return _legs(lab, {way: f"small_{way}" for way in ways}, lab.samples(full=40, quick=5))


def heavy(lab: Lab) -> Iterator[tuple[str, Series]]:
    """The same for a DAG file that imports pandas; a sandbox that is made beforehand has imported it by then."""
    return _legs(lab, {way: f"heavy_{way}" for way in lab.ways}, lab.samples(full=20, quick=3))


def _legs(lab: Lab, dags: Mapping[str, str], count: int) -> Iterator[tuple[str, Series]]:
    """Both legs of the one task of a DAG, for the DAG of each way."""
    taken: dict[str, dict[str, list[float]]] = {leg: {way: [] for way in dags} for leg in LEGS}
    for number in range(count + 1):
        for way, dag_id in dags.items():
            instance = _run(lab, dag_id, f"{dag_id}-{number}")
            if number:  # the first brings the image's files into memory, and makes the shape known
                if way in KINDS:
                    _check_kind(lab, way, instance["dag_run_id"])
                for leg, since in LEGS.items():
                    taken[leg][way].append(milliseconds(instance, since))
    for leg, samples in taken.items():
        yield leg, Series(unit="ms", samples=samples, base=STOCK)


def milliseconds(instance: Json, since: str) -> float:
    """From the time under that key to the task's end."""
    end, begin = (datetime.fromisoformat(instance[key]) for key in ("end_date", since))
    return (end - begin).total_seconds() * 1000


def succeeded(lab: Lab, dag_id: str, run_id: str) -> Sequence[Json]:
    """The task instances of a run that has ended. Raises AssertionError unless all succeeded."""
    instances = lab.airflow.task_instances(dag_id, run_id)
    assert {each["state"] for each in instances} == {"success"}, f"{dag_id}: {lab.airflow.states(dag_id, run_id)}"
    return instances


def _run(lab: Lab, dag_id: str, run_id: str) -> Json:
    lab.settle()
    lab.airflow.trigger(dag_id, run_id)
    lab.airflow.wait_for_run(dag_id, run_id)
    (instance,) = succeeded(lab, dag_id, run_id)
    return instance


def _check_kind(lab: Lab, kind: str, run_id: str) -> None:
    (sandbox,) = [each for each in lab.node(kind).ps(all=True) if each["labels"].get("aircell.dev/run") == run_id]
    lab.served(kind, sandbox)
