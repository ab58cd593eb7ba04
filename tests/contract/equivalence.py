"""The table of docs/backends.md: which engine enforces which field of a spec, by the outcome of the contract's tests.

A test marked ``field`` proves a field from inside a sandbox, or else UnsupportedSpec is raised before anything is made
(the harness sees to that). Either will do, as long as the table says so: a test whose outcome is not the table's fails.
``pytest tests/contract --write-backends-table`` writes what it finds instead.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import cast

import pytest

from aircell.errors import UnsupportedSpec
from tests.contract.engines import ENGINES, Engine
from tests.contract.forks import FORKS, NotAFork

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
ENFORCED, REFUSED, NO_FORK = "enforced", "refused", "no fork"

Table = dict[str, dict[str, str]]
"""Field to engine to outcome."""

FOUND = pytest.StashKey[Table]()
WRITE = "--write-backends-table"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(WRITE, action="store_true", help="write the outcomes of the contract's tests to docs/backends.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "field(name, ...): proves fields of SandboxSpec on an engine, or sees it refuse")
    config.addinivalue_line("markers", "first_kind(reason): why this cannot be asked of forks of zygotes")
    config.addinivalue_line("markers", "engines: takes minutes on each engine; `just test-engines` runs it")
    config.stash[FOUND] = {}


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    fields = [name for mark in pyfuncitem.iter_markers("field") for name in mark.args]
    if not fields:
        return (yield)
    outcome, result = ENFORCED, None
    try:
        result = yield
    except NotAFork:
        outcome = NO_FORK
    except UnsupportedSpec:
        outcome = REFUSED
    engine = cast(Engine, pyfuncitem.callspec.params["engine"]).name
    if engine not in {known.name for known in (*ENGINES, FORKS)}:
        return result  # of another's backend the table says nothing
    table = pyfuncitem.config.stash[FOUND] if pyfuncitem.config.getoption(WRITE) else read()
    for field in fields:
        said = table.get(field, {}).get(engine)
        if pyfuncitem.config.getoption(WRITE) and said is None:
            pyfuncitem.config.stash[FOUND].setdefault(field, {})[engine] = outcome
        elif said != outcome:
            pytest.fail(f"{field} is {outcome} on {engine}; elsewhere it is {said}. See `just backends-table`.")
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption(WRITE) and exitstatus == pytest.ExitCode.OK:
        write(session.config.stash[FOUND])


def read() -> Table:
    """The table as the page has it."""
    header, _, *rows = [_cells(line) for line in _parts()[1].splitlines() if line]
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def write(table: Table) -> None:
    before, _, after = _parts()
    engines = list(next(iter(table.values())))
    lines = [["field", *engines], ["---"] * (len(engines) + 1)]
    lines += [[f"`{field}`", *(table[field][engine] for engine in engines)] for field in sorted(table)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _parts() -> tuple[str, str, str]:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]
