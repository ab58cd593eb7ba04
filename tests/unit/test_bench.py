"""The arithmetic of the benchmarks: what follows from samples, what a target says of it, what a report shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.jobs import Launch
from tests.bench.report import number, tables, verdicts
from tests.bench.results import Results, Section, Series
from tests.bench.steps import Steps
from tests.bench.targets import TARGETS, Target

SERIES = Series(unit="ms", base="stock", samples={"stock": [100.0, 300.0, 200.0], "cold": [500.0, 300.0]})


def results(series: Series = SERIES, error: str = "") -> Results:
    section = Section(
        commit="c",
        machine={},
        versions={},
        effort="quick",
        began="2026-01-01T00:00:00+00:00",
        seconds=1,
        load=[0, 0],
        error=error,
        series={"start to end": series},
    )
    return Results().having("tasks", section)


def shown(what: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def test_medians_and_ratios_follow_from_the_samples() -> None:
    assert SERIES.medians == {"stock": 200, "cold": 400}
    assert SERIES.ratios == {"cold": 2}
    assert SERIES.ratio("stock", "cold") == 0.5
    assert SERIES.ratio("zygote", "stock") is None


def test_percentiles_are_linear_between_samples() -> None:
    series = Series(unit="ms", samples={"cold": list(map(float, range(101))), "stock": [7.0], "zygote": []})
    assert [series.percentile("cold", percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert series.percentile("stock", 99) == 7
    assert series.percentile("zygote", 50) is None
    assert series.percentile("nothing", 50) is None


def test_a_kind_without_samples_has_no_ratio() -> None:
    series = Series(unit="ms", base="stock", samples={"stock": [], "cold": [1.0]})
    assert series.ratios == {}
    assert series.ratio("cold", "stock") is None


def test_a_file_holds_every_sample_and_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "results.json"
    results().save(path)
    kept = json.loads(path.read_text())["benchmarks"]["tasks"]["series"]["start to end"]
    assert kept["samples"]["stock"] == [100, 300, 200]
    assert kept["medians"] == {"stock": 200, "cold": 400}
    assert kept["ratios"] == {"cold": 2}
    assert Results.load(path) == results()
    assert Results.load(tmp_path / "none.json") == Results()


def test_a_new_section_replaces_its_own_benchmark_alone() -> None:
    both = results().having("cold", results().benchmarks["tasks"])
    again = both.having("tasks", results(error="broken").benchmarks["tasks"])
    assert [(name, section.error) for name, section in again.benchmarks.items()] == [("tasks", "broken"), ("cold", "")]


@pytest.mark.parametrize(
    ("target", "figure", "met"),
    [
        (Target("tasks", "start to end", "cold", 400), 400, True),
        (Target("tasks", "start to end", "cold", 399), 400, False),
        (Target("tasks", "start to end", "stock", 250, percent=95), 290, False),
        (Target("tasks", "start to end", "cold", 2, against="stock"), 2, True),
        (Target("tasks", "start to end", "cold", 2, against="stock", at_least=True), 2, True),
        (Target("tasks", "start to end", "cold", 2.1, against="stock", at_least=True), 2, False),
        (Target("tasks", "start to end", "zygote", 1000), None, False),
        (Target("tasks", "start to end", "cold", 1000, against="zygote"), None, False),
        (Target("tasks", "queued to end", "cold", 1000), None, False),
        (Target("parsing", "start to end", "cold", 1000), None, False),
    ],
)
def test_a_target_is_met_by_what_was_measured(target: Target, figure: float | None, met: bool) -> None:
    assert target.figure(results()) == figure
    assert target.met(results()) is met


def test_the_verdicts_name_what_was_not_measured() -> None:
    text = shown(verdicts([Target("tasks", "start to end", "cold", 400), *TARGETS[:1]], results()))
    assert "tasks: start to end, cold p50 <= 400" in text
    assert text.count("not measured") == 1
    assert text.count("missed") == 1
    assert text.count("met") == 1


def test_the_tables_show_samples_percentiles_ratios_and_failures() -> None:
    text = shown(tables(results(error="AssertionError: no")))
    assert "ended early: AssertionError: no" in text
    row = next(line for line in text.splitlines() if "cold" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["cold", "ms", "2", "400", "490", "498", "2.00"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (7.0, "7"), (99.94, "99.9"), (123.4, "123"), (1234.0, "1234")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_steps_are_what_lies_between_events() -> None:
    steps = Steps()
    queued, running, exited = (
        {"event": name, "at": at} for name, at in (("queued", 10.5), ("running", 11), ("exited", 20))
    )
    steps.note(Launch(1250, 10, "a"), [queued, running, exited])
    pulling, creating = {"event": "pulling", "at": 11.0}, {"event": "creating", "at": 12.0}
    steps.note(Launch(5000, 10, "b"), [queued, pulling, creating, {"event": "starting", "at": 14.0}])
    assert steps.samples == {
        "accepted": [500, 500],
        "claimed and handed over": [500],
        "from there to the first line": [250],
        "pod and container made": [2000],
    }
