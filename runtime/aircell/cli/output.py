"""What every command shares: how it prints, and how it reports an error."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from aircell.errors import AircellError

EXIT_FAILURE = 125
"""Aircell itself failed or refused; a command in a sandbox has codes of its own."""
_WIDE = 240
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def console(*, stderr: bool = False) -> Console:
    """A terminal has its own width; a pipe or a file gets lines that are not broken."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDE, highlight=False)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; the first column is never cut, because it is what other commands want."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)


def print_json(data: Any) -> None:
    """For other programs: indented, on standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def note(message: str) -> None:
    """A line about what Aircell does, on standard error."""
    sys.stderr.write(f"aircell: {message}\n")
    sys.stderr.flush()


def progress(line: str) -> None:
    """A line that another program printed, on standard error."""
    sys.stderr.write(f"  | {line}\n")
    sys.stderr.flush()


def print_error(error: AircellError) -> None:
    """What happened, what to do next, and the evidence, on standard error."""
    where = f"sandbox {error.sandbox}: " if error.sandbox else ""
    note(where + error.message)
    if error.hint:
        sys.stderr.write(f"  fix: {error.hint}\n")
    if error.detail:
        sys.stderr.write("".join(f"  | {line}\n" for line in error.detail.splitlines()))


def size(count: int) -> str:
    """Bytes for a human: three digits and a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def duration(seconds: float) -> str:
    """An age for a human, in its largest unit and the next."""
    whole = max(0, int(seconds))
    for (large, length), (small, part) in pairwise(_UNITS):
        if whole >= length:
            return f"{whole // length}{large} {whole % length // part}{small}"
    return f"{whole}s"
