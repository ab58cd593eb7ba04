"""Tasks that must not run: each fails, with the reason in its own log. Imports nothing of ours that could be broken."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
from airflow.sdk.execution_time.coordinator import BaseCoordinator

if TYPE_CHECKING:
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import TaskInstance
    from structlog.typing import FilteringBoundLogger


class TaskRefused(Exception):
    """This worker may not, or cannot, run the task in a sandbox, and does not run it elsewhere."""


def fail(what: TaskInstance, client: Client, logger: FilteringBoundLogger, error: Exception) -> NoReturn:
    """Ends a task of which no line has run, by raising ``error``. The caller has told ``logger`` the reason.

    The scheduler sees that the executor failed: it retries the task or fails it, and has its callbacks run, as for
    every worker that cannot start a task. The API server is told of the start for the sake of the host name, without
    which it would not find the log on this worker.
    """
    from airflow.sdk.execution_time.supervisor import _remote_logging_conn  # imports the coordinator module itself
    from airflow.sdk.log import upload_to_remote

    client.task_instances.start(what.id, os.getpid(), datetime.now(tz=timezone.utc))
    with _remote_logging_conn(client):
        upload_to_remote(logger, what)  # type: ignore[arg-type]  # it reads the ids alone
    raise error


class RefusingCoordinator(BaseCoordinator):
    """Fails every task with the same reason."""

    def __init__(self, message: str, cause: Exception | None = None) -> None:
        self._message = message
        self._cause = cause

    def execute_task(
        self, *, what: TaskInstance, client: Client, logger: FilteringBoundLogger | None = None, **_: Any
    ) -> BaseCoordinator.ExecutionResult:
        logger = logger or structlog.get_logger(logger_name="task").bind()
        logger.error(self._message, logger="aircell", exc_info=self._cause)
        fail(what, client, logger, TaskRefused(self._message))


def mapped_queue(queue: str, coordinator: str) -> RefusingCoordinator:
    """For a queue that ``[sdk] queue_to_coordinator`` gives to a coordinator which would run on the host."""
    return RefusingCoordinator(
        f"Refused: [sdk] queue_to_coordinator sends queue {queue!r} to coordinator {coordinator!r}, which would run "
        "this task on the worker itself, but [sandbox_runtime] task_execution_runtime promises a sandbox for every "
        "task. Take the queue out of the mapping, or let a worker with task_execution_runtime = process serve it."
    )


def broken_installation(error: Exception) -> RefusingCoordinator:
    """For when our own coordinator cannot be imported or made."""
    return RefusingCoordinator(
        "Aircell is switched on ([sandbox_runtime] task_execution_runtime) but cannot be loaded on this worker, so "
        f"the task was not run: {type(error).__name__}: {error}. Repair the installation of `aircell` here, or set "
        "the option to process to run tasks without sandboxes.",
        cause=error,
    )
