# /// script
# requires-python = ">=3.10"
# dependencies = ["matplotlib==3.11.2"]
# ///
"""Draws what ``bench/results.json`` holds as SVG, and nothing else: ``plot.py RESULTS FOLDER``.

``./justw bench --plot`` runs it with ``uv run --script``, which gives it an environment of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found]  # only in this script's own environment
from matplotlib import pyplot

COMPARED = (
    ("tasks", "queued to end", "Small task, queued to end"),
    ("heavy", "start to end", "Task of a DAG that imports pandas, start to end"),
    ("parsing", "one of 100 small files", "Parsing one of 100 small files"),
    ("parsing", "one of 20 heavy files", "Parsing one of 20 heavy files"),
)
"""Benchmark, series and title."""
BREAKDOWN = "steps of "


def main(results: Path, folder: Path) -> None:
    """Writes ``latency.svg`` and ``comparison.svg``, as far as the results go."""
    matplotlib.rcParams.update({"svg.hashsalt": "aircell", "font.size": 9})  # the same results give the same file
    benchmarks = json.loads(results.read_text())["benchmarks"]
    breakdown(benchmarks, folder / "latency.svg")
    comparison(benchmarks, folder / "comparison.svg")


def breakdown(benchmarks: dict[str, Any], path: Path) -> None:
    """Where the time of a launch goes: a row for each benchmark and kind, a part for each step's median."""
    rows = {
        f"{benchmark}: {name.removeprefix(BREAKDOWN)}": series["medians"]
        for benchmark, section in benchmarks.items()
        for name, series in section["series"].items()
        if name.startswith(BREAKDOWN)
    }
    if not rows:
        return
    # Hand-overs take a hundredth of a cold start: each row has an axis of its own.
    figure, axes = pyplot.subplots(len(rows), squeeze=False, figsize=(7, 1.5 * len(rows)), layout="constrained")
    for row, (name, medians) in zip(axes[:, 0], rows.items(), strict=True):
        left = 0.0
        for step, width in medians.items():
            row.barh([""], [width], left=left, label=f"{step} {number(width)}")
            left += width
        row.set_title(f"{name} (ms, medians)", loc="left")
        row.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, path)


def comparison(benchmarks: dict[str, Any], path: Path) -> None:
    """Medians of each way, side by side."""
    there = [
        (title, benchmarks[name]["series"][series])
        for name, series, title in COMPARED
        if series in benchmarks.get(name, {}).get("series", {})
    ]
    if not there:
        return
    figure, rows = pyplot.subplots(len(there), squeeze=False, figsize=(7, 1.8 * len(there)), layout="constrained")
    for axes, (title, series) in zip(rows[:, 0], there, strict=True):
        bars = axes.barh(list(series["medians"]), list(series["medians"].values()))
        axes.bar_label(bars, fmt=number, padding=3)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_title(f"{title} ({series['unit']}, median)", loc="left")
    save(figure, path)


def number(value: float) -> str:
    """As the report has it; this script can import nothing of ours."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
