"""Parsing: how long a DAG processor takes for one file when it has nothing else to do than parse, again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.cpu import busy
from tests.bench.kinds import KINDS
from tests.bench.lab import STOCK, Lab
from tests.bench.results import Series
from tests.support.airflow_stack import wait_until
from tests.support.images import reference
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

_DAG = """
{imports}
from airflow.sdk import dag, task

@dag(dag_id={dag_id!r}, schedule="@daily", catchup=False)
def flow():
    @task
    def extract(): return 1

    @task
    def load(value): ...

    load(extract())

flow()
"""
_UNDISTURBED: Mapping[str, Mapping[str, str]] = {
    "dag_processor": {
        "parsing_processes": "2",
        "min_file_process_interval": "0",
        "bundle_refresh_check_interval": "600",
        "refresh_interval": "600",
        "stale_dag_threshold": "600",
    }
}
_WARM_UP = 4
"""Parses before the clock runs."""
_START_SECONDS = 180.0


@dataclass(frozen=True)
class Files:
    """Alike but for their names."""

    count: int
    image: str
    imports: str = ""
    preload: str = ""
    """What sandboxes that are ready have imported."""


FILES: Mapping[str, Files] = {
    "one of 100 small files": Files(100, "task"),
    "one of 20 heavy files": Files(20, "demo-a", "import pandas", preload="pandas"),
}


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """Each set of files on each way in turn, by a DAG processor with two slots that has just started."""
    ways = [*lab.ways, *(kind for kind in KINDS if KINDS[kind].only == "parsing")]
    for title, files in FILES.items():
        rates: dict[str, list[float]] = {way: [] for way in ways}
        costs: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(lab.samples(full=3, quick=1)):
            for way in ways:
                rate, cost = _window(lab, way, files)
                rates[way].append(rate)
                costs[way].append(1000 * cost)
        yield f"{title}, rate", Series(unit="files/s", samples=rates, base=STOCK)
        times = {way: [1000 / rate for rate in taken] for way, taken in rates.items()}
        yield title, Series(unit="ms", samples=times, base=STOCK)
        yield f"{title}, CPU time", Series(unit="CPU-ms", samples=costs, base=STOCK)


def _window(lab: Lab, way: str, files: Files) -> tuple[float, float]:
    """Parses in a second, and CPU seconds of the whole machine for each."""
    options: dict[str, dict[str, str]] = {}
    if way != STOCK:
        lab.engine.load(files.image)
        wanted = {**KINDS[way].options, **({"preload": files.preload} if files.preload else {})}
        options = sandboxed(lab.node(way).socket, reference(files.image), **wanted)
    with temporary_stack() as stack:
        for number in range(files.count):
            dag_id = f"file_{number}"
            stack.write(f"{dag_id}.py", _DAG.format(dag_id=dag_id, imports=files.imports))
        stack.environment = lab.python_path()
        stack.configure(options, _UNDISTURBED)
        stack.start()
        parsed = _Counter(stack)
        wait_until(lambda: parsed.look() >= _WARM_UP, "the first parses", _START_SECONDS, why=stack.why)
        wait_until(lambda: lab.begun(way, files.image), f"a first {way} is used", _START_SECONDS, why=stack.why)
        return _count(parsed, seconds=lab.samples(full=20, quick=5))


def _count(parsed: _Counter, seconds: float) -> tuple[float, float]:
    """From one parse to another: neither end of the window cuts one in two."""
    first, spent = parsed.wait(), busy()
    began = now = time.monotonic()
    while now - began < seconds:
        last, now = parsed.wait(), time.monotonic()
    return (last - first) / (now - began), (busy() - spent) / (last - first)


class _Counter:
    """Counts parses by the time that Airflow notes for each DAG."""

    def __init__(self, stack: ParsingStack) -> None:
        self._stack = stack
        self._seen: dict[str, Any] = {}
        self._count = 0

    def look(self) -> int:
        """Parses so far."""
        now = dict(self._stack.rows("select dag_id, last_parsed_time from dag"))
        self._count += sum(self._seen.get(dag_id) != at for dag_id, at in now.items())
        self._seen = now
        return self._count

    def wait(self) -> int:
        """The same, once there is another."""
        before = self._count
        what = "another parse"
        return wait_until(lambda: self.look() if self.look() > before else 0, what, _START_SECONDS, pause=0.05)
