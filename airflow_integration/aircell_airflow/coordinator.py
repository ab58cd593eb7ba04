"""Tasks in sandboxes: Airflow's task coordinator interface."""

from __future__ import annotations

import contextlib
import functools
import selectors
import signal
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import attrs
import structlog
from airflow.dag_processing.bundles.base import BundleVersionLock
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.sdk.execution_time.coordinator import BaseCoordinator
from airflow.sdk.execution_time.supervisor import ActivitySubprocess
from airflow.sdk.execution_time.supervisor import log as supervisor_log

from aircell.errors import AircellError
from aircell_airflow import guarded, plan, refusal, settings, worker_secrets
from aircell_airflow.launch_log import LaunchLog
from aircell_airflow.sandboxed import SandboxedProcess, SandboxTracker, launch

if TYPE_CHECKING:
    from socket import socket

    from airflow.executors.workloads import BundleInfo
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import TaskInstance
    from structlog.typing import FilteringBoundLogger
    from typing_extensions import Self

_FORWARDED = (signal.SIGTERM, signal.SIGINT)


class SandboxCoordinator(BaseCoordinator):
    """Runs each task in a sandbox of its own."""

    def execute_task(
        self,
        *,
        what: TaskInstance,
        dag_rel_path: str | PathLike[str],
        bundle_info: BundleInfo,
        client: Client,
        logger: FilteringBoundLogger | None = None,
        sentry_integration: str = "",
        subprocess_logs_to_stdout: bool,
        **kwargs: Any,
    ) -> BaseCoordinator.ExecutionResult:
        """Returns when the task has ended. Raises when it could not be started; its log then says why."""
        logger = logger or structlog.get_logger(logger_name="task").bind()
        with BundleVersionLock(bundle_info.name, bundle_info.version):  # type: ignore[no-untyped-call]
            try:
                process = _launch(what, dag_rel_path, bundle_info, logger)
            except AircellError as error:
                LaunchLog(logger).failed(error)
                refusal.fail(what, client, logger, error)
            except Exception as error:
                logger.exception("The worker could not prepare this task's sandbox", logger="aircell")
                refusal.fail(what, client, logger, error)
            with process.sandbox:
                activity = SandboxedActivity.start(
                    process=process,
                    what=what,
                    dag_rel_path=dag_rel_path,
                    bundle_info=bundle_info,
                    client=client,
                    logger=logger,
                    sentry_integration=sentry_integration,
                    subprocess_logs_to_stdout=subprocess_logs_to_stdout,
                )
                exit_code = activity.wait()
            return self.ExecutionResult(exit_code, activity.final_state)


def _launch(
    what: TaskInstance, dag_rel_path: str | PathLike[str], bundle_info: BundleInfo, log: FilteringBoundLogger
) -> SandboxTracker:
    """Brings the bundle to this worker, resolves the task's sandbox and asks for it."""
    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    bundle = manager.get_bundle(bundle_info.name, bundle_info.version)
    bundle.initialize()
    known = {name: getattr(what, name) for name in ("dag_id", "task_id", "run_id", "try_number", "map_index", "queue")}
    resolved = plan.plan(
        "task",
        file=bundle.path / dag_rel_path,
        bundle_root=bundle.path,
        context=known,
        executor_config=getattr(what, "executor_config", None),  # LocalExecutor alone hands it over
    )
    labels = {"dag": what.dag_id, "task": what.task_id, "run": what.run_id, "try": str(what.try_number)}
    if what.map_index is not None and what.map_index >= 0:
        labels["map-index"] = str(what.map_index)
    return launch(
        resolved,
        bundle_name=bundle.name,
        bundle_path=bundle.path,
        args={"entry": "task"},
        role="task",
        labels=labels,
        log=log,
        traceparent=_traceparent(what),
    )


def _traceparent(what: TaskInstance) -> str:
    """The span of the task, where Airflow traces; empty where it does not."""
    carrier = what.context_carrier if settings.traces() else None
    return str((carrier or {}).get("traceparent", ""))


@attrs.define(kw_only=True)
class SandboxedActivity(SandboxedProcess, ActivitySubprocess):
    """The supervisor of one task in a sandbox."""

    @classmethod
    def start(  # type: ignore[override]
        cls,
        *,
        process: SandboxTracker,
        what: TaskInstance,
        dag_rel_path: str | PathLike[str],
        bundle_info: BundleInfo,
        client: Client,
        logger: FilteringBoundLogger,
        sentry_integration: str = "",
        **kwargs: Any,
    ) -> Self:
        """Supervises ``process`` and tells the API server at once that the task runs, so that heartbeats count."""
        self = cls.supervise(process, supervisor_log, id=what.id, client=client, process_log=logger, **kwargs)
        self._on_child_started(
            ti=what, dag_rel_path=dag_rel_path, bundle_info=bundle_info, sentry_integration=sentry_integration
        )
        return self

    def _send_new_log_fd(self, req_id: int) -> None:
        before = set(self.selector.get_map())
        super()._send_new_log_fd(req_id)
        for fd in set(self.selector.get_map()) - before:
            key = self.selector.get_key(fd)
            sock, (read, on_close) = cast("socket", key.fileobj), key.data
            read = guarded.lines(sock, read, guarded.MAX_LINE, functools.partial(self._dropped, "logs"))
            self.selector.modify(sock, selectors.EVENT_READ, (read, on_close))

    def wait(self) -> int:
        """As the supervisor does, with signals for the worker going to the sandbox."""
        # Stock forwards a signal to self.pid, which is this very process. _monitor_subprocess puts a handler of ours
        # in place of stock's; until then none may come.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        try:
            return super().wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _monitor_subprocess(self) -> None:
        for number in _FORWARDED:
            signal.signal(number, self._forward_signal)
        with _unblocked(_FORWARDED):
            super()._monitor_subprocess()  # type: ignore[no-untyped-call]

    def _forward_signal(self, number: int, frame: object) -> None:
        # No line in the log from here: the interrupted code may hold the log's lock. The exit's reason says it.
        self._process.send_signal(signal.Signals(number))

    def _handle_request(self, msg: Any, log: FilteringBoundLogger, req_id: int) -> None:
        if not worker_secrets.answer(self, msg, req_id):
            super()._handle_request(msg, log, req_id)


@contextlib.contextmanager
def _unblocked(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
