"""Who owns a dag_id, and how a failure that is ours is stored: against Airflow's own tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.errors import ParseImportError
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from aircell_airflow import records


@pytest.fixture
def session() -> Iterator[Session]:
    import_all_models()  # type: ignore[no-untyped-call]
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([DagBundleModel(name="ours"), DagBundleModel(name="theirs")])
        yield session
    engine.dispose()


def add(session: Session, dag_id: str, bundle: str, file: str | None, *, stale: bool = False) -> None:
    row = {"dag_id": dag_id, "bundle_name": bundle, "relative_fileloc": file, "is_stale": stale, "fileloc": "/x"}
    session.add(DagModel(**row))  # type: ignore[no-untyped-call]
    session.flush()


def owners(session: Session, *dag_ids: str, file: str = "a.py") -> dict[str, str]:
    return records.foreign_owners(dag_ids, "ours", file, session)


def test_dags_of_other_files_and_bundles_are_foreign_and_ours_and_new_ones_are_not(session: Session) -> None:
    add(session, "mine", "ours", "a.py")
    add(session, "neighbours", "ours", "b.py")
    add(session, "namesakes", "theirs", "a.py")
    assert owners(session, "mine", "neighbours", "namesakes", "new") == {
        "neighbours": "b.py in bundle ours",
        "namesakes": "a.py in bundle theirs",
    }


def test_a_dag_that_its_file_no_longer_defines_is_free(session: Session) -> None:
    add(session, "gone", "theirs", "b.py", stale=True)
    assert owners(session, "gone") == {}


def test_a_dag_whose_file_is_broken_for_now_is_not_free(session: Session) -> None:
    add(session, "broken", "theirs", "b.py", stale=True)
    session.add(ParseImportError(bundle_name="theirs", filename="b.py", stacktrace="boom"))
    session.flush()
    assert owners(session, "broken") == {"broken": "b.py in bundle theirs"}


def test_the_members_of_an_archive_are_one_file(session: Session) -> None:
    add(session, "inside", "ours", "a_.zip/x.py")
    assert owners(session, "inside", file="a_.zip") == {}
    assert owners(session, "inside", file="ab.zip") == {"inside": "a_.zip/x.py in bundle ours"}


def test_a_dag_from_before_there_were_bundles_is_free(session: Session) -> None:
    add(session, "old", "theirs", None)
    assert owners(session, "old") == {}


def stored(session: Session) -> list[tuple[Any, ...]]:
    columns = (ParseImportError.bundle_name, ParseImportError.filename, ParseImportError.stacktrace)
    return [tuple(row) for row in session.execute(select(*columns))]


def test_a_failure_is_the_one_import_error_of_its_file_and_leaves_its_dags_alone(session: Session) -> None:
    add(session, "mine", "ours", "a.py")
    records.record_failure("ours", "a.py", "first", session)
    session.flush()
    records.record_failure("ours", "a.py", "second", session)
    session.flush()
    assert stored(session) == [("ours", "a.py", "second")]
    dag = session.get_one(DagModel, "mine")
    assert (dag.is_stale, bool(dag.has_import_errors)) == (False, False)
