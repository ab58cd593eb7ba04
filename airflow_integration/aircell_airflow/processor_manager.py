"""The DAG processor's loop, as far as sandboxes change it.

A file whose sandbox failed keeps its DAGs. A file whose image is being pulled or built gives its slot to another. A
file that claims another file's DAG is refused.
"""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from airflow._shared.timezones.timezone import utcnow
from airflow.dag_processing.manager import DagFileInfo, DagFileProcessorManager
from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from aircell.errors import AircellError, Unavailable
from aircell_airflow import records

if TYPE_CHECKING:
    from airflow.dag_processing.processor import DagFileParsingResult

    from aircell_airflow.processor import SandboxedFileProcessor

RETRY_CALLBACKS_SECONDS = 30.0
"""After which callbacks whose sandbox failed are tried again."""


@attrs.define(kw_only=True)
class SandboxedDagFileProcessorManager(DagFileProcessorManager):
    """``DagFileProcessorManager`` whose processors are :class:`~aircell_airflow.processor.SandboxedFileProcessor`."""

    if TYPE_CHECKING:
        _processors: dict[DagFileInfo, SandboxedFileProcessor]  # type: ignore[assignment]

    _failing: set[tuple[str, Path]] = attrs.field(factory=set, init=False)
    """Presence keys of files whose last parse failed for a reason that is not theirs."""
    _awaited: dict[str, tuple[DagFileInfo, SandboxedFileProcessor]] = attrs.field(factory=dict, init=False)
    """Image -> the file whose sandbox waits for it, outside of the slots."""
    _waiting: dict[DagFileInfo, str] = attrs.field(factory=dict, init=False)
    """Files that come back into the queue when their image has been pulled or built."""
    _callback_retries: dict[DagFileInfo, float] = attrs.field(factory=dict, init=False)
    """Files with callbacks that come back into the queue at a time (monotonic)."""

    # --- results ---

    def handle_parsing_result(self, file: DagFileInfo, proc: Any, **kwargs: Any) -> None:
        """As in stock for a file that was parsed; of one that was not, only why is stored."""
        proc.conclude()
        if proc.failure is not None:
            self._keep(file, proc, proc.failure)
            return
        if proc.parsing_result is not None:
            try:
                self._refuse_takeover(file, proc, proc.parsing_result)
            except SQLAlchemyError as error:
                self._keep(file, proc, Unavailable(f"Nobody could tell who owns its DAGs: {error}"))
                return
            self._failing.discard(file.presence_key)
        super().handle_parsing_result(file, proc, **kwargs)

    def _refuse_takeover(self, file: DagFileInfo, proc: SandboxedFileProcessor, result: DagFileParsingResult) -> None:
        dag_ids = [dag.dag_id for dag in result.serialized_dags]
        with create_session() as session:
            owners = records.foreign_owners(dag_ids, file.bundle_name, str(file.rel_path), session)
        if owners:
            taken = ", ".join(f"{dag_id!r} ({owner})" for dag_id, owner in sorted(owners.items()))
            proc.refuse(
                f"Aircell refused this file, because it defines DAGs that belong to other files: {taken}. Give the "
                "DAG another dag_id, or take it out of the other file; Airflow then lets go of it within "
                "[scheduler] parsing_cleanup_interval plus [dag_processor] stale_dag_threshold."
            )

    def _keep(self, file: DagFileInfo, proc: SandboxedFileProcessor, error: AircellError) -> None:
        """Shows the failure and leaves the DAGs as they are; callbacks are tried again where that may help."""
        self._failing.add(file.presence_key)
        detail = f"\n\n{error.detail}" if error.detail else ""
        text = f"Aircell could not parse this file in a sandbox; its DAGs stay as they are. {error}{detail}"
        try:
            with create_session() as session:
                records.record_failure(file.bundle_name, str(file.rel_path), text, session)
        except SQLAlchemyError:  # as in stock: a database that fails now must not end the loop
            self.log.exception("Could not store why %s was not parsed: %s", file, error)
        if proc.had_callbacks and error.family == "machinery":
            self._callback_to_execute[file] += proc.request.callback_requests
            self._callback_retries[file] = time.monotonic() + RETRY_CALLBACKS_SECONDS
        stat = self._file_stats[file]
        self._file_stats[file] = attrs.evolve(
            stat, import_errors=1, last_finish_time=utcnow(), run_count=stat.run_count + (not proc.had_callbacks)
        )

    def deactivate_stale_dags(self, last_parsed: dict[DagFileInfo, datetime | None], **kwargs: Any) -> None:
        parsed = {file: at for file, at in last_parsed.items() if file.presence_key not in self._failing}
        super().deactivate_stale_dags(parsed, **kwargs)

    # --- time and slots ---

    def _kill_timed_out_processors(self) -> None:
        """The limit holds for the parsing, and by itself for the way to a sandbox that is ready."""
        for processor in self._processors.values():
            seconds = time.monotonic() - processor.start_time
            if seconds > self.processor_timeout and not processor._process.ready and processor.failure is None:
                processor.fail(
                    Unavailable(
                        f"The sandbox was not ready within {seconds:.0f} s.",
                        hint="The node may be overloaded, or aircelld or the container engine hangs: look at "
                        "`aircell ps` and aircelld's log. [dag_processor] dag_file_processor_timeout is the limit.",
                    )
                )
                processor.start_time = time.monotonic()
        before = set(self._processors)
        super()._kill_timed_out_processors()  # type: ignore[no-untyped-call]
        self._failing -= {file.presence_key for file in before - set(self._processors)}

    def _service_processor_sockets(self, timeout: float | None = 1.0) -> None:
        """As in stock, but not just once: a sandbox says several things for each file, and each turn of the manager's
        loop asks the database what else there is to do."""
        end = time.monotonic() + (timeout or 0.0)
        while True:
            super()._service_processor_sockets(timeout=max(0.0, end - time.monotonic()))
            if time.monotonic() >= end or self._has_news():
                return

    def _has_news(self) -> bool:
        """Whether a file has been parsed, or waits for an image, or does not any more."""
        awaited = ((image, each) for image, (_, each) in self._awaited.items())
        known = (*((None, each) for each in self._processors.values()), *awaited)
        return any(each.is_ready or each.awaited_image != image for image, each in known)

    def _collect_results(self) -> None:
        self._set_aside()
        super()._collect_results()  # type: ignore[no-untyped-call]

    def _set_aside(self) -> None:
        """One sandbox waits for each image; the others that need it are given up and their files come back later."""
        for file, processor in list(self._processors.items()):
            image = processor.awaited_image
            if image is None or processor.failure is not None:
                continue
            del self._processors[file]
            if image in self._awaited:
                self._waiting[file] = image
                if processor.had_callbacks:
                    self._callback_to_execute[file] += processor.request.callback_requests
                processor.close()
            else:
                processor.parked = True
                self._awaited[image] = (file, processor)

    def _start_new_processes(self) -> None:
        self._take_back()
        now = time.monotonic()
        due = [file for file, at in self._callback_retries.items() if at <= now]
        for file in due:
            del self._callback_retries[file]
        self._add_files_to_queue(due, mode="front")
        for file in (*self._waiting, *(file for file, _ in self._awaited.values())):
            self._file_queue.pop(file, None)
        super()._start_new_processes()  # type: ignore[no-untyped-call]

    def _take_back(self) -> None:
        for image, (file, processor) in list(self._awaited.items()):
            if len(self._processors) >= self._parallelism or (
                processor.awaited_image == image and not processor.is_ready
            ):
                continue
            del self._awaited[image]
            self._processors[file] = processor
            processor.unpark()
            back = [other for other, wanted in self._waiting.items() if wanted == image]
            for other in back:
                del self._waiting[other]
            self._add_files_to_queue(back, mode="front")

    def terminate(self) -> None:
        super().terminate()  # type: ignore[no-untyped-call]
        for _, processor in self._awaited.values():
            processor.kill(signal.SIGKILL, escalation_delay=0)
            processor.close()
        self._awaited.clear()
