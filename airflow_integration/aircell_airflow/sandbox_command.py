"""The commands ``airflow sandbox test`` and ``airflow sandbox parse``: one task, one parse, in its sandbox."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import structlog
from airflow.cli.commands.task_command import _get_ti
from airflow.configuration import conf
from airflow.executors.workloads import BundleInfo
from airflow.sdk.api.datamodels._generated import TaskInstance as RunnableTask
from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor
from airflow.utils.cli import get_db_dag
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from uuid6 import uuid7

from aircell.errors import AircellError, SandboxLost, StartupFailed
from aircell_airflow import bundles, settings
from aircell_airflow.provider_info import MAIN
from aircell_airflow.resolve import Kind

if TYPE_CHECKING:
    from airflow.dag_processing.processor import DagFileParsingResult
    from airflow.models.taskinstance import TaskInstance
    from structlog.typing import EventDict, FilteringBoundLogger

    from aircell_airflow.processor import SandboxedFileProcessor

DEFAULT_BACKEND = "cri"
_BAD = (TaskInstanceState.FAILED, TaskInstanceState.UP_FOR_RETRY)


def test(args: Namespace) -> None:
    """Runs one task in its sandbox, against the metadata database, without its dependencies.

    Like ``airflow tasks test``, but the DAG is taken from the database, as its file may not be importable here.
    """
    from aircell_airflow.coordinator import SandboxCoordinator

    with _refusals(f"{args.dag_id}.{args.task_id}: not run"), _task_instance(args) as ti:
        _choose_backend("task", args.backend)
        ti.set_state(TaskInstanceState.QUEUED)
        try:
            SandboxCoordinator().execute_task(
                what=_runnable(ti),
                dag_rel_path=ti.dag_model.relative_fileloc or "",
                bundle_info=BundleInfo(name=ti.dag_model.bundle_name, version=ti.dag_run.bundle_version),
                client=InProcessTestSupervisor._api_client(),  # type: ignore[no-untyped-call]
                logger=_console("task"),
                subprocess_logs_to_stdout=False,
            )
        except AircellError:
            ti.set_state(TaskInstanceState.FAILED)
            raise
        ti.refresh_from_db()
        state = ti.state
    print(f"{args.dag_id}.{args.task_id}: {state}")
    if state in _BAD:
        raise SystemExit(1)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Ends the command with one line instead of a traceback when it is our side that cannot or may not."""
    try:
        yield
    except AircellError as error:
        raise SystemExit(f"{what}: {error}") from error


def _console(name: str) -> FilteringBoundLogger:
    """A logger on this terminal, as Airflow configured it, with tracebacks from the sandbox in readable form."""
    processors = [_readable_traceback, *structlog.get_config()["processors"]]
    logger: FilteringBoundLogger = structlog.wrap_logger(None, processors=processors, logger_name=name).bind()
    return logger


def _readable_traceback(logger: object, method: str, event: EventDict) -> EventDict:
    """A child sends an exception as data, under ``error_detail``; a console wants text, under ``exception``."""
    lines: list[str] = []
    for error in reversed(event.pop("error_detail", None) or []):
        frames = [f'  File "{each["filename"]}", line {each["lineno"]}, in {each["name"]}' for each in error["frames"]]
        lines += ["Traceback (most recent call last):", *frames, f"{error['exc_type']}: {error['exc_value']}"]
    return {**event, "exception": "\n".join(lines)} if lines else event


def _choose_backend(kind: Kind, backend: str | None) -> None:
    """For this process: the backend asked for, else the configured one, else the default, as the flag may be off."""
    configured = settings.load(kind).runtime
    chosen = backend or (configured if configured != settings.PROCESS else DEFAULT_BACKEND)
    os.environ[f"AIRFLOW__{MAIN.upper()}__{settings.FLAG[kind].upper()}"] = chosen


@contextlib.contextmanager
def _task_instance(args: Namespace) -> Iterator[TaskInstance]:
    """The task instance to run; a DAG run that was made for it goes again."""
    dag = get_db_dag(None, args.dag_id)
    ti, made = _get_ti(
        dag.get_task(args.task_id),
        args.map_index,
        logical_date_or_run_id=args.logical_date_or_run_id,
        create_if_necessary="db",
    )
    try:
        yield ti
    finally:
        if made:
            with create_session() as session:
                session.delete(ti.dag_run)


def _runnable(ti: TaskInstance) -> RunnableTask:
    return RunnableTask(
        id=ti.id,
        task_id=ti.task_id,
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        try_number=ti.try_number,
        map_index=ti.map_index,
        dag_version_id=ti.dag_version_id,  # type: ignore[arg-type]  # _get_ti() sets it
        queue=ti.queue,
    )


def parse(args: Namespace) -> None:
    """Parses one DAG file in its sandbox, as the DAG processor does, and prints what came of it; stores nothing."""
    file = Path(args.file).absolute()
    if not file.is_file():
        raise SystemExit(f"There is no DAG file {file}.")
    with _refusals(f"{file}: not parsed"), Path(os.devnull).open("ab") as nowhere:
        _choose_backend("parse", args.backend)
        result = _parse(file, nowhere)
    _report(file, result)
    if result.import_errors:
        raise SystemExit(1)


def _parse(file: Path, log_file: BinaryIO) -> DagFileParsingResult:
    """Raises AircellError when the file was not parsed, for which it is not to blame."""
    from aircell_airflow.processor import SandboxedFileProcessor

    bundle = bundles.holding(file)
    processor = SandboxedFileProcessor.start(
        id=uuid7(),
        path=file,
        bundle_path=bundle.path,
        bundle_name=bundle.name,
        dag_file_rel_path=str(file.relative_to(bundle.path)),
        callbacks=[],
        selector=selectors.DefaultSelector(),
        logger=_console("processor"),
        logger_filehandle=log_file,
        client=InProcessTestSupervisor._api_client(),  # type: ignore[no-untyped-call]
    )
    try:
        _finish(processor, conf.getfloat("dag_processor", "dag_file_processor_timeout"))
    finally:
        processor.close()
    if processor.failure is not None:
        raise processor.failure
    if processor.parsing_result is None:
        raise SandboxLost("the parser ended without a result.", hint="Its own output is above.")
    return processor.parsing_result


def _finish(processor: SandboxedFileProcessor, limit: float) -> None:
    """Serves the sandbox to its end, for at most ``limit`` seconds, as the DAG processor's loop does."""
    deadline = time.monotonic() + limit
    while not processor.is_ready and time.monotonic() < deadline:
        processor._service_subprocess(max_wait_time=1.0)
    if not processor.is_ready:
        processor.fail(StartupFailed(f"It took over {limit:g} s ([dag_processor] dag_file_processor_timeout)."))
    processor.conclude()


def _report(file: Path, result: DagFileParsingResult) -> None:
    for dag in result.serialized_dags:
        tasks = [task["__var"]["task_id"] for task in dag.data["dag"]["tasks"]]
        print(f"DAG {dag.dag_id}: {len(tasks)} tasks: {', '.join(tasks)}")
    for name, error in (result.import_errors or {}).items():
        print(f"import error in {name}:\n{error}")
    if not result.serialized_dags and not result.import_errors:
        print(f"{file}: no DAGs")
