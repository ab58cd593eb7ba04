"""``aircell explain``: in what sandbox a DAG file is parsed and its tasks run, and who said so.

Airflow is imported when the command runs, not when ``aircell`` lists its commands.
"""

from __future__ import annotations

import contextlib
import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aircell.errors import InvalidSpec

if TYPE_CHECKING:
    from aircell_airflow.plan import Resolved
    from aircell_airflow.resolve import Kind


_WIDE = 240
"""Columns where there is no terminal: lines are not to be broken there."""


class Kinds(str, Enum):
    """What to explain."""

    task = "task"
    parse = "parse"
    both = "both"


def explain(
    file: Annotated[Path, typer.Argument(help="The DAG file.")],
    kind: Annotated[Kinds, typer.Option(help="The sandbox of its tasks, of its parsing, or both.")] = Kinds.both,
    bundle_root: Annotated[
        Path | None, typer.Option(help="The bundle's folder; the configured bundle that holds the file if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Shows the sandbox of a DAG file, with the source of every value."""
    file = file.absolute()
    if not file.is_file():
        raise InvalidSpec(f"There is no DAG file {file}.")
    with contextlib.redirect_stdout(sys.stderr):  # Airflow logs on standard output, which is for the answer
        found = _plans(file, bundle_root, kind)
    if as_json:
        typer.echo(json.dumps({name: _as_data(resolved) for name, resolved in found.items()}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    for name, resolved in found.items():
        console.print(_table(name, resolved))


def _plans(file: Path, bundle_root: Path | None, kinds: Kinds) -> dict[Kind, Resolved]:
    try:
        from aircell_airflow import bundles, plan
    except ModuleNotFoundError as error:
        raise InvalidSpec(
            f"This Python has no Airflow, whose configuration decides: {error}.",
            hint="Run `aircell` from the environment of the worker; `pip install aircell[airflow]` makes one.",
        ) from error
    root = bundle_root.absolute() if bundle_root else bundles.holding(file).path
    wanted: tuple[Kind, ...] = ("task", "parse")
    return {
        kind: plan.plan(kind, file=file, bundle_root=root, context={})
        for kind in wanted
        if kinds in (Kinds.both, Kinds(kind))
    }


def _as_data(resolved: Resolved) -> dict[str, object]:
    return {
        "backend": resolved.backend,
        "spec": resolved.spec.model_dump(mode="json"),
        "sources": dict(resolved.sources),
    }


def _table(kind: Kind, resolved: Resolved) -> Table:
    from aircell_airflow.resolve import dotted_values

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(kind, no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold", style="dim")
    table.add_row("backend", resolved.backend, escape(resolved.sources["backend"]))
    for name, value in dotted_values(resolved.spec).items():
        shown = value if isinstance(value, str) else json.dumps(value)
        table.add_row(name, escape(shown), escape(resolved.sources[name]))
    return table
