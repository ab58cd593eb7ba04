"""What the DAG processor's database knows of a file's DAGs, and is told of failures that are not the file's."""

from __future__ import annotations

from collections.abc import Collection

from airflow._shared.timezones.timezone import utcnow
from airflow.models.dag import DagModel
from airflow.models.errors import ParseImportError
from sqlalchemy import and_, exists, false, or_, select
from sqlalchemy.orm import Session


def foreign_owners(
    dag_ids: Collection[str], bundle_name: str, relative_fileloc: str, session: Session
) -> dict[str, str]:
    """Those of ``dag_ids`` that belong to another file, each with that file as a person would name it.

    A dag_id belongs to the file (or archive) that defined it last, until Airflow has found that this file no longer
    defines it and calls the DAG stale. A DAG that is stale only because its file has an import error is not given up.
    """
    broken = exists().where(
        ParseImportError.bundle_name == DagModel.bundle_name, ParseImportError.filename == DagModel.relative_fileloc
    )
    in_archive = DagModel.relative_fileloc.startswith(f"{relative_fileloc}/", autoescape=True)
    ours = and_(DagModel.bundle_name == bundle_name, or_(DagModel.relative_fileloc == relative_fileloc, in_archive))
    # A row without a place in its bundle dates from Airflow 2: the first file that is parsed takes it up, as in stock.
    known = DagModel.relative_fileloc.is_not(None)
    rows = session.execute(
        select(DagModel.dag_id, DagModel.bundle_name, DagModel.relative_fileloc).where(
            DagModel.dag_id.in_(dag_ids), known, ~ours, or_(DagModel.is_stale == false(), broken)
        )
    )
    return {dag_id: f"{path} in bundle {bundle}" for dag_id, bundle, path in rows}


def record_failure(bundle_name: str, relative_fileloc: str, text: str, session: Session) -> None:
    """Shows ``text`` as the import error of a file, and leaves the file's DAGs as they are.

    Airflow's own way of storing an import error makes the DAGs of the file stale, which stops their schedule. The
    next parse of the file that comes to a result replaces or removes the error, as it does with any other.
    """
    error = session.scalar(
        select(ParseImportError).where(
            ParseImportError.bundle_name == bundle_name, ParseImportError.filename == relative_fileloc
        )
    )
    if error is None:
        error = ParseImportError(bundle_name=bundle_name, filename=relative_fileloc)
        session.add(error)
    error.stacktrace = text
    error.timestamp = utcnow()
