"""What a sandbox may say about a DAG file. Pure: no I/O, nothing of Airflow is imported.

The DAG processor trusts its child: it opens the path that a serialized DAG names and stores what it finds there as
the DAG's source, writes import errors and warnings under whatever key it is given, and grants what
``access_control`` asks for. A sandboxed child is not to be trusted, so each result is held against the file that
was asked for, before the manager sees it. Facts: ``dag_processing/{processor,manager,collection}.py``,
``models/{dagcode,dagwarning}.py`` and ``utils/file.py`` of Airflow 3.3.2.

Its size is bounded before (:mod:`aircell_airflow.guarded`), and who owns a dag_id is in the database
(:mod:`aircell_airflow.records`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_DAGS = 5000
MAX_TEXT = 2**20
"""Characters of one import error or warning."""
MAX_DEPTH = 200
"""Levels of nested lists and mappings. Airflow walks them recursively, and Python stops near 1000 calls."""

_DAG_ID = re.compile(r"[\w.-]{1,250}")
_WARNING_KEYS = frozenset({"dag_id", "warning_type", "message"})
_WARNING_TYPES = frozenset({"asset conflict", "non-existent pool", "runtime varying value"})
_ALL_DAGS = "DAGs"
"""FAB's auth manager takes this dag_id for its resource of the same name, which means every DAG."""


class SerializedDag(Protocol):
    """``LazyDeserializedDAG``, as far as this module reads it."""

    @property
    def data(self) -> dict[str, Any]: ...


class ParsingResult(Protocol):
    """``DagFileParsingResult``, as far as this module reads it."""

    @property
    def fileloc(self) -> str: ...
    @property
    def serialized_dags(self) -> Sequence[SerializedDag]: ...
    @property
    def warnings(self) -> list[Any] | None: ...
    @property
    def import_errors(self) -> dict[str, str] | None: ...


@dataclass(frozen=True)
class RequestedFile:
    """The file that the sandbox was asked to parse."""

    path: str
    """Absolute, as it was asked for."""
    relative: str
    """Below the bundle's root."""
    is_archive: bool
    """A zip file: its DAGs are one level inside."""
    serializer_version: int
    """The newest format of serialized DAGs that this Airflow reads."""

    def members(self, root: str, location: object) -> str | None:
        """What follows ``root`` in ``location``: "" for the file itself, "/dag.py" inside an archive, else None."""
        if location == root:
            return ""
        if not isinstance(location, str) or not self.is_archive:
            return None
        prefix, _, name = location.rpartition("/")
        return f"/{name}" if prefix == root and name not in ("", ".", "..") and "\0" not in name else None


def violation(result: ParsingResult, file: RequestedFile) -> str | None:
    """The first thing in ``result`` that a parse of ``file`` may not say, as a sentence; None when all is well."""
    return next(_violations(result, file), None)


def _violations(result: ParsingResult, file: RequestedFile) -> Iterator[str]:
    if result.fileloc != file.path:
        yield f"the result is for {_short(result.fileloc)}"
    if len(result.serialized_dags) > MAX_DAGS:
        yield f"{len(result.serialized_dags)} DAGs in one file are over the limit of {MAX_DAGS}"
    seen: set[str] = set()
    for dag in result.serialized_dags:
        yield from _dag_violations(dag.data, file, seen)
    yield from _error_violations(result.import_errors or {}, file)
    yield from _warning_violations(result.warnings or [], seen)


def _dag_violations(data: Mapping[str, Any], file: RequestedFile, seen: set[str]) -> Iterator[str]:
    if _deeper_than(data, MAX_DEPTH):
        yield f"a serialized DAG is nested over {MAX_DEPTH} levels deep"
    version, dag = data.get("__version"), data.get("dag")
    if not isinstance(version, int) or version > file.serializer_version:
        yield (
            f"a DAG is serialized in format {_short(version)}, and this Airflow reads up to "
            f"{file.serializer_version}; use an image whose Airflow is not newer than the DAG processor's"
        )
    if not isinstance(dag, dict):
        yield "a serialized DAG holds no DAG"
        return
    dag_id = dag.get("dag_id")
    if not isinstance(dag_id, str) or not _DAG_ID.fullmatch(dag_id):
        yield f"{_short(dag_id)} is no dag_id"
        return
    if dag_id in seen:
        yield f"the dag_id {dag_id!r} occurs twice"
    seen.add(dag_id)
    if dag_id == _ALL_DAGS and dag.get("access_control"):
        yield f"a DAG named {_ALL_DAGS!r} with access_control would grant permissions on every DAG"
    yield from _location_violations(dag_id, dag, file)


def _location_violations(dag_id: str, dag: Mapping[str, Any], file: RequestedFile) -> Iterator[str]:
    member = file.members(file.path, dag.get("fileloc"))
    if member is None:
        yield f"the DAG {dag_id!r} names {_short(dag.get('fileloc'))} as its file"
    elif dag.get("relative_fileloc") != file.relative + member:
        yield f"the DAG {dag_id!r} names {_short(dag.get('relative_fileloc'))} as its place in the bundle"


def _error_violations(errors: Mapping[str, str], file: RequestedFile) -> Iterator[str]:
    for key, text in errors.items():
        # Airflow 3.3 keys an error inside an archive by its absolute path, every other one by its place in the bundle.
        if file.members(file.relative, key) is None and not file.members(file.path, key):
            yield f"an import error is for {_short(key)}"
        if len(text) > MAX_TEXT:
            yield f"an import error of {len(text)} characters is over the limit of {MAX_TEXT}"


def _warning_violations(warnings: Iterable[object], dag_ids: set[str]) -> Iterator[str]:
    for warning in warnings:
        if not isinstance(warning, dict) or set(warning) != _WARNING_KEYS or not _all_text(warning.values()):
            yield f"{_short(warning)} is no DAG warning"
            continue
        if warning["dag_id"] not in dag_ids:
            yield f"a warning is for the DAG {_short(warning['dag_id'])}, which is not in this file"
        if warning["warning_type"] not in _WARNING_TYPES:
            yield f"{_short(warning['warning_type'])} is no type of warning"
        if len(warning["message"]) > MAX_TEXT:
            yield f"a warning of {len(warning['message'])} characters is over the limit of {MAX_TEXT}"


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _deeper_than(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
