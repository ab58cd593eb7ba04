"""``./justw bench``: what a sandbox costs, beside stock Airflow and beside the bare engine.

``docs/performance.md`` says what each row means.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from tests.bench import cold, daemon, growth, handover, load, memory, parsing, tasks
from tests.bench.lab import ROOT, Effort, Lab
from tests.bench.machine import commit, machine, versions
from tests.bench.report import tables, verdicts
from tests.bench.results import Results, Section, Series
from tests.bench.targets import TARGETS

RESULTS = ROOT / "bench" / "results.json"

Benchmark: TypeAlias = Callable[[Lab], Iterator[tuple[str, Series]]]

BENCHMARKS: Mapping[str, Benchmark] = {
    "handover": handover.measure,
    "cold": cold.interpreter,
    "cold-airflow": cold.airflow,
    "daemon": daemon.measure,
    "memory": memory.measure,
    "growth": growth.measure,
    "parsing": parsing.measure,
    "tasks": tasks.measure,
    "heavy": tasks.heavy,
    "burst": load.burst,
    "sustained": load.sustained,
}
"""In the order in which they run: those without Airflow first, for once it is there it takes its share of the CPU."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="What has a target, few samples: minutes, not hours.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Show the targets; exit with 1 when one is missed.")] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw what was measured last into docs/; measures nothing.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(BENCHMARKS)}; may be repeated.")] = None,
) -> None:
    """Measures, prints the tables, and keeps all samples in bench/results.json, where others' sections stay."""
    if unknown := set(only or ()) - set(BENCHMARKS):
        raise typer.BadParameter(f"no benchmark is called {', '.join(sorted(unknown))}", param_hint="--only")
    aimed_at = {target.benchmark for target in TARGETS}
    chosen = [name for name in BENCHMARKS if (name in only if only else name in aimed_at or not quick)]
    results = Results.load(RESULTS) if plot else run(chosen, "quick" if quick else "full", RESULTS)
    console.print(tables(results))
    if plot:
        draw(RESULTS, ROOT / "docs")
    missed = not all(target.met(results) for target in TARGETS)
    if check:
        console.print(verdicts(TARGETS, results))
    if (check and missed) or any(section.error for section in results.benchmarks.values()):
        raise typer.Exit(1)


def run(names: Sequence[str], effort: Effort, path: Path) -> Results:
    """Runs those benchmarks, and writes each one's section as soon as it is there."""
    results = Results.load(path)
    with Lab(effort) as lab:
        for name in names:
            console.print(f"[bold]>[/bold] {name} ...")
            results = results.having(name, _section(lab, BENCHMARKS[name]))
            results.save(path)
            lab.drain()
    return results


def draw(results: Path, folder: Path) -> None:
    """Draws them, in an environment of the script's own."""
    script = Path(__file__).with_name("plot.py")
    uv = [sys.executable, "-m", "uv", "run", "--quiet", "--script"]
    subprocess.run([*uv, str(script), str(results), str(folder)], check=True)


def _section(lab: Lab, benchmark: Benchmark) -> Section:
    began, load = time.monotonic(), os.getloadavg()[0]
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    series: dict[str, Series] = {}
    error = ""
    try:
        series.update(benchmark(lab))
    except Exception as failure:  # the others can still be measured
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    return Section(
        commit=commit(),
        machine=machine(),
        versions=versions(),
        effort=lab.effort,
        began=at,
        seconds=time.monotonic() - began,
        load=[load, os.getloadavg()[0]],
        error=error,
        series=series,
    )


if __name__ == "__main__":
    typer.run(main)
