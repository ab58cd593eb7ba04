"""What a sandbox may say about a DAG file, case by case."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aircell_airflow.validate import MAX_DAGS, MAX_DEPTH, MAX_TEXT, RequestedFile, violation

FILE = RequestedFile("/dags/a/one.py", "a/one.py", is_archive=False, serializer_version=3)
ZIP = RequestedFile("/dags/a/all.zip", "a/all.zip", is_archive=True, serializer_version=3)


@dataclass
class Dag:
    data: dict[str, Any]


@dataclass
class Result:
    fileloc: str = FILE.path
    serialized_dags: list[Dag] = field(default_factory=list)
    warnings: list[Any] | None = None
    import_errors: dict[str, str] | None = None


def dag(dag_id: object = "d", fileloc: object = FILE.path, relative: object = FILE.relative, **more: Any) -> Dag:
    return Dag({"__version": 3, "dag": {"dag_id": dag_id, "fileloc": fileloc, "relative_fileloc": relative, **more}})


def warning(**changes: Any) -> dict[str, Any]:
    return {"dag_id": "d", "warning_type": "runtime varying value", "message": "m", **changes}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "result",
    [
        Result(),
        Result(serialized_dags=[dag(), dag("e.f-g")], import_errors={FILE.relative: "boom"}, warnings=[warning()]),
        Result(serialized_dags=[dag("DAGs")]),
        Result(serialized_dags=[dag(access_control={"Viewer": {"DAGs": ["can_read"]}})]),
        Result(serialized_dags=[dag("däg")], import_errors={FILE.relative: "x" * MAX_TEXT}),
        Result(serialized_dags=[dag(params=nested(MAX_DEPTH - 3))]),
    ],
)
def test_what_an_honest_parse_says_passes(result: Result) -> None:
    assert violation(result, FILE) is None


def test_what_an_honest_parse_of_an_archive_says_passes() -> None:
    inside = dag(fileloc="/dags/a/all.zip/x.py", relative="a/all.zip/x.py")
    for key in ("a/all.zip", "a/all.zip/x.py", "/dags/a/all.zip/x.py"):
        assert violation(Result(ZIP.path, [inside], import_errors={key: "boom"}), ZIP) is None


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (Result(fileloc="/opt/airflow/airflow.cfg"), "the result is for '/opt/airflow/airflow.cfg'"),
        (
            Result(serialized_dags=[dag(fileloc="/opt/airflow/airflow.cfg")]),
            "the DAG 'd' names '/opt/airflow/airflow.cfg' as its file",
        ),
        (Result(serialized_dags=[dag(fileloc=FILE.path + "/x.py")]), "as its file"),
        (Result(serialized_dags=[dag(fileloc=None)]), "names None as its file"),
        (Result(serialized_dags=[dag(fileloc=["/etc/passwd"])]), "as its file"),
        (Result(serialized_dags=[dag(relative="../x.py")]), "names '../x.py' as its place in the bundle"),
        (Result(serialized_dags=[dag(relative=None)]), "names None as its place"),
        (Result(serialized_dags=[dag(7)]), "7 is no dag_id"),
        (Result(serialized_dags=[dag("DAG:other")]), "'DAG:other' is no dag_id"),
        (Result(serialized_dags=[dag("d\n")]), "is no dag_id"),
        (Result(serialized_dags=[dag("x" * 251)]), "is no dag_id"),
        (Result(serialized_dags=[dag(), dag()]), "the dag_id 'd' occurs twice"),
        (Result(serialized_dags=[dag("DAGs", access_control={"Viewer": {}})]), "permissions on every DAG"),
        (Result(serialized_dags=[Dag({"__version": 4, "dag": dag().data["dag"]})]), "format 4"),
        (Result(serialized_dags=[Dag({"dag": dag().data["dag"]})]), "format None"),
        (Result(serialized_dags=[Dag({"__version": 3, "dag": []})]), "holds no DAG"),
        (Result(serialized_dags=[dag(params=nested(MAX_DEPTH))]), "levels deep"),
        (Result(serialized_dags=[dag(str(n)) for n in range(MAX_DAGS + 1)]), "over the limit of 5000"),
        (Result(import_errors={"b/two.py": "boom"}), "an import error is for 'b/two.py'"),
        (Result(import_errors={FILE.path: "boom"}), "an import error is for '/dags/a/one.py'"),
        (Result(import_errors={FILE.relative: "x" * (MAX_TEXT + 1)}), "characters is over the limit"),
        (Result(warnings=[warning()]), "a warning is for the DAG 'd'"),
        (Result(serialized_dags=[dag()], warnings=["text"]), "'text' is no DAG warning"),
        (Result(serialized_dags=[dag()], warnings=[warning(timestamp=1)]), "is no DAG warning"),
        (Result(serialized_dags=[dag()], warnings=[warning(warning_type="mine")]), "'mine' is no type of warning"),
        (Result(serialized_dags=[dag()], warnings=[warning(dag_id=["d"])]), "is no DAG warning"),
        (Result(serialized_dags=[dag()], warnings=[warning(message="x" * (MAX_TEXT + 1))]), "over the limit"),
    ],
)
def test_a_lie_is_refused(result: Result, says: str) -> None:
    assert says in (violation(result, FILE) or "")


@pytest.mark.parametrize(
    "inside", ["/..", "/../one.py", "/../../airflow.cfg", "/", "/.", "/x\0.py", "/x/y.py", "x.py", "2/x.py"]
)
def test_nothing_leads_out_of_an_archive(inside: str) -> None:
    lie = dag(fileloc=ZIP.path + inside, relative=ZIP.relative + inside)
    assert "as its file" in (violation(Result(ZIP.path, [lie]), ZIP) or "")
    assert "an import error" in (violation(Result(ZIP.path, import_errors={ZIP.relative + inside: "x"}), ZIP) or "")


def test_the_place_in_the_bundle_belongs_to_the_same_member_of_an_archive() -> None:
    lie = dag(fileloc="/dags/a/all.zip/x.py", relative="a/all.zip/y.py")
    assert "as its place in the bundle" in (violation(Result(ZIP.path, [lie]), ZIP) or "")


def test_a_long_lie_is_cut() -> None:
    assert len(violation(replace(Result(), fileloc="x" * 10_000), FILE) or "") < 300


def test_depth_is_counted_without_recursion() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    for _ in range(200):
        deep = [deep]
    assert "levels deep" in (violation(Result(serialized_dags=[dag(params=deep)]), FILE) or "")
