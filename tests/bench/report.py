"""Results as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from tests.bench.results import PERCENTILES, Results, Section
from tests.bench.targets import Target


def tables(results: Results) -> RenderableType:
    """One table for each benchmark."""
    return Group(*(_table(name, section) for name, section in results.benchmarks.items()))


def verdicts(targets: Sequence[Target], results: Results) -> Table:
    """Each target beside its figure."""
    table = Table("target", title="Targets")
    table.add_column("measured", justify="right")
    table.add_column("")
    for target in targets:
        figure = target.figure(results)
        verdict = "[green]met[/green]" if target.met(results) else "[red]missed[/red]"
        table.add_row(target.says, "not measured" if figure is None else number(figure), verdict)
    return table


def number(value: float) -> str:
    """Three significant digits, and never fewer than the whole part has."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(name: str, section: Section) -> Table:
    failed = f", [red]ended early: {section.error}[/red]" if section.error else ""
    load = " to ".join(number(each) for each in section.load)
    title = f"{name} ({section.commit}, {section.effort}, {section.seconds:.0f} s, load {load}){failed}"
    table = Table("", "kind", title=title, title_justify="left")
    for column in ("unit", "samples", *(f"p{percent}" for percent in PERCENTILES), "ratio"):
        table.add_column(column, justify="right")
    for row in _rows(section):
        table.add_row(*row)
    return table


def _rows(section: Section) -> Iterator[list[str]]:
    for name, series in section.series.items():
        for kind, samples in series.samples.items():
            figures = [series.percentile(kind, percent) for percent in PERCENTILES]
            ratio = f"{series.ratios[kind]:.2f}" if kind in series.ratios else ""
            shown = ["" if figure is None else number(figure) for figure in figures]
            yield [name, kind, series.unit, str(len(samples)), *shown, ratio]
