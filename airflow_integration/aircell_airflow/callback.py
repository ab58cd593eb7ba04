"""Executor callbacks (deadline alerts) in sandboxes: user code that Airflow runs on a worker outside any task."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.sdk.execution_time.callback_supervisor import CallbackSubprocess
from airflow.sdk.execution_time.callback_supervisor import log as supervisor_log

from aircell.errors import AircellError
from aircell_airflow import plan, worker_secrets
from aircell_airflow.launch_log import LaunchLog
from aircell_airflow.refusal import TaskRefused
from aircell_airflow.sandboxed import SandboxedProcess, SandboxTracker, launch

if TYPE_CHECKING:
    from airflow.executors.workloads import BundleInfo
    from airflow.sdk.api.client import Client
    from structlog.typing import FilteringBoundLogger
    from typing_extensions import Self


@attrs.define(kw_only=True)
class SandboxedCallback(SandboxedProcess, CallbackSubprocess):
    """The supervisor of one callback in the sandbox of its DAG file."""

    @classmethod
    def start(  # type: ignore[override]
        cls,
        *,
        id: str | UUID,
        callback_path: str,
        callback_kwargs: dict[str, Any],
        dag_rel_path: os.PathLike[str] | str,
        bundle_info: BundleInfo | None = None,
        client: Client,
        logger: FilteringBoundLogger,
        **kwargs: Any,
    ) -> Self:
        """Raises AircellError or TaskRefused when nothing was launched; the callback's log then says why."""
        if bundle_info is None or not bundle_info.name or not os.fspath(dag_rel_path):
            message = "Refused: this callback names no DAG file, so nothing says in which sandbox to run it."
            logger.error(message, logger="aircell")
            raise TaskRefused(message)
        args = {
            "entry": "callback",
            "callback_path": callback_path,
            "callback_kwargs": callback_kwargs,
            "dag_rel_path": os.fspath(dag_rel_path),
            "bundle_name": bundle_info.name,
            "bundle_version": bundle_info.version,
        }
        try:
            process = _launch(str(id), args, logger)
        except AircellError as error:
            LaunchLog(logger).failed(error)
            raise
        return cls.supervise(process, supervisor_log, id=UUID(str(id)), client=client, process_log=logger, **kwargs)

    def wait(self) -> int:
        with self.sandbox:
            return super().wait()

    def _handle_request(self, msg: Any, log: FilteringBoundLogger, req_id: int) -> None:
        if not worker_secrets.answer(self, msg, req_id):
            super()._handle_request(msg, log, req_id)


def _launch(id: str, args: dict[str, Any], log: FilteringBoundLogger) -> SandboxTracker:
    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    bundle = manager.get_bundle(args["bundle_name"], args["bundle_version"])
    bundle.initialize()
    resolved = plan.plan(
        "task",
        file=bundle.path / args["dag_rel_path"],
        bundle_root=bundle.path,
        context={"callback_id": id, "callback_path": args["callback_path"]},
    )
    return launch(
        resolved,
        bundle_name=bundle.name,
        bundle_path=bundle.path,
        args=args,
        role="callback",
        labels={"callback": id},
        log=log,
    )
