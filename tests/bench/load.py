"""Many tasks: a burst of them, and as many as there can be for as long as one likes.

A warm kind is then an aircelld that makes sandboxes beforehand: where they run out, tasks get cold ones, and wait.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import count

from tests.bench.cpu import busy
from tests.bench.dags import BATCH, IMAGES
from tests.bench.lab import STOCK, Lab
from tests.bench.results import Series
from tests.bench.tasks import succeeded

_RUN_SECONDS = 900.0
_AHEAD = 80
"""Unfinished tasks that there always are: several times what the executor runs at a time."""
_RAMP = 32
"""Tasks before the clock runs, from when one can find its sandbox ready: twice as many as run at a time, so that none
is left of those that began before."""
_PAUSE = 1.0
"""Seconds between two looks."""


def burst(lab: Lab) -> Iterator[tuple[str, Series]]:
    """All tasks of a run at a time: seconds from the first that was queued to the end of the last."""
    taken: dict[str, list[float]] = {way: [] for way in lab.ways}
    for number in range(lab.samples(full=3, quick=1)):
        for way in lab.ways:
            dag_id, run_id = f"burst_{way}", f"burst-{way}-{number}"
            lab.settle()
            lab.airflow.trigger(dag_id, run_id)
            lab.airflow.wait_for_run(dag_id, run_id, _RUN_SECONDS)
            instances = succeeded(lab, dag_id, run_id)
            begin = min(datetime.fromisoformat(each["queued_when"]) for each in instances)
            end = max(datetime.fromisoformat(each["end_date"]) for each in instances)
            taken[way].append((end - begin).total_seconds())
    yield "all of 50 tasks", Series(unit="s", samples=taken, base=STOCK)


def sustained(lab: Lab) -> Iterator[tuple[str, Series]]:
    """The way's share of ten minutes in each of two rounds."""
    rounds = lab.samples(full=2, quick=1)
    rates: dict[str, list[float]] = {way: [] for way in lab.ways}
    costs: dict[str, list[float]] = {way: [] for way in lab.ways}
    for number in range(rounds):
        for way in lab.ways:
            rate, cost = _Saturation(lab, way, number).window(lab.samples(full=600, quick=60) / rounds)
            rates[way].append(rate)
            costs[way].append(cost)
    yield "tasks per second", Series(unit="1/s", samples=rates, base=STOCK)
    yield "CPU time of a task", Series(unit="CPU-s", samples=costs, base=STOCK)


class _Saturation:
    """Run after run of a DAG of some tasks, so that there is always one more to do."""

    def __init__(self, lab: Lab, way: str, number: int) -> None:
        self._airflow = lab.airflow
        self._begun = functools.partial(lab.begun, way, IMAGES[0])
        self._database = lab.database
        self._dag_id = f"batch_{way}"
        self._names = (f"batch-{way}-{number}-{each}" for each in count())
        self._runs: list[str] = []

    def window(self, seconds: float) -> tuple[float, float]:
        """Tasks that ended in a second, and CPU seconds of the whole machine for each, Airflow's own included."""
        start = datetime.now(timezone.utc)
        while not self._begun():
            self._go_on(start)
        ramp = self._ended(start) + _RAMP
        while self._ended(start) < ramp:
            self._go_on(start)
        begin, clock, spent = datetime.now(timezone.utc), time.monotonic(), busy()
        while time.monotonic() - clock < seconds:
            self._go_on(start)
        ended = self._ended(begin)
        rate = ended / (time.monotonic() - clock)
        assert ended, f"nothing ended in {seconds:g} s: {self._airflow.component_log('scheduler')[-2000:]}"
        cost = (busy() - spent) / ended
        self._finish()
        return rate, cost

    def _go_on(self, start: datetime) -> None:
        while len(self._runs) * BATCH - self._ended(start) < _AHEAD:
            self._runs.append(next(self._names))
            self._airflow.trigger(self._dag_id, self._runs[-1])
        time.sleep(_PAUSE)

    def _ended(self, since: datetime) -> int:
        """Asked of the database itself: the API server has enough to do."""
        sql = "select count(*) from task_instance where dag_id = '{}' and end_date >= '{}'"
        return int(self._database.ask(sql.format(self._dag_id, since.isoformat())))

    def _finish(self) -> None:
        states = {self._airflow.wait_for_run(self._dag_id, run_id, _RUN_SECONDS) for run_id in self._runs}
        assert states == {"success"}, f"runs of {self._dag_id} ended as {states}"
