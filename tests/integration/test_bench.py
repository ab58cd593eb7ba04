"""That the benchmarks still run: the cheapest one, with a few samples."""

from __future__ import annotations

from pathlib import Path

from tests.bench.__main__ import run
from tests.bench.results import Results


def test_a_benchmark_measures_and_keeps_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    section = run(["cold"], "smoke", path).benchmarks["cold"]
    assert section.error == ""
    samples = section.series["request to first line"].samples
    assert {kind: len(taken) for kind, taken in samples.items()} == {"raw CRI": 2, "cold": 2, "runc": 2}
    assert all(milliseconds > 0 for taken in samples.values() for milliseconds in taken)
    assert Results.load(path).benchmarks["cold"] == section
