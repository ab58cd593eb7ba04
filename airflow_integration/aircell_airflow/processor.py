"""DAG files in sandboxes: what the DAG processor starts for each file, or for the callbacks of its DAGs."""

from __future__ import annotations

import contextlib
import functools
import selectors
import signal
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs
from airflow.dag_processing.bundles.base import BundleVersionLock
from airflow.dag_processing.processor import DagFileParseRequest, DagFileParsingResult, DagFileProcessorProcess
from airflow.serialization.serialized_objects import DagSerialization

from aircell.errors import AircellError, IncompatibleImage, InvalidSpec, SandboxLost
from aircell.status import State
from aircell_airflow import guarded, plan, skew, validate, worker_secrets
from aircell_airflow.launch_log import LaunchLog
from aircell_airflow.launching import PendingLaunch
from aircell_airflow.sandboxed import EXIT_NEVER_RAN, SandboxedProcess, SandboxTracker, launch

if TYPE_CHECKING:
    from airflow.callbacks.callback_requests import CallbackRequest
    from structlog.typing import FilteringBoundLogger
    from typing_extensions import Self

MAX_OUTPUT = 16 * 2**20
"""Bytes that one parse may write to each of stdout, stderr and its log; the rest is dropped."""
SEND_SECONDS = 5
"""How long a sandbox may leave an answer unread before it is ended: the manager's one loop waits for it."""


def install(manager: ModuleType) -> None:
    """Parses in sandboxes from now on. ``manager`` is ``airflow.dag_processing.manager``."""
    from aircell_airflow.processor_manager import SandboxedDagFileProcessorManager

    manager.DagFileProcessorProcess = SandboxedFileProcessor  # type: ignore[attr-defined]
    manager.DagFileProcessorManager = SandboxedDagFileProcessorManager  # type: ignore[attr-defined]


@attrs.define(kw_only=True)
class SandboxedFileProcessor(SandboxedProcess, DagFileProcessorProcess):
    """One file's sandbox, from the manager's wish to the result.

    How it ends is in ``failure`` when the sandbox failed, and else in ``parsing_result`` as in stock.
    """

    request: DagFileParseRequest
    _process: PendingLaunch | SandboxTracker  # type: ignore[assignment]
    failure: AircellError | None = None
    """Why the file could not be parsed, for which the file is not to blame; final once ``is_ready``."""
    awaited_image: str | None = None
    """The image, while it is being pulled or built."""
    parked: bool = False
    """Once the sandbox is ready, it is to wait for ``unpark``."""
    _refused: bool = False
    _facts: Mapping[str, Any] | None = None
    _locks: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)

    @classmethod
    def start(  # type: ignore[override]
        cls,
        *,
        path: str | PathLike[str],
        bundle_path: Path,
        bundle_name: str,
        dag_file_rel_path: str,
        callbacks: list[CallbackRequest],
        logger: FilteringBoundLogger,
        **kwargs: Any,
    ) -> Self:
        """As in stock, but nothing of the file is imported into the manager, and nothing here waits for anything."""
        request = DagFileParseRequest(
            file=str(path), bundle_path=bundle_path, bundle_name=bundle_name, callback_requests=callbacks
        )
        process = PendingLaunch(functools.partial(_launch, request, dag_file_rel_path, logger))
        self = cls(
            request=request,
            pid=process.pid,
            stdin=process.done,
            process=process,
            process_log=logger,
            bundle_name=bundle_name,
            dag_file_rel_path=dag_file_rel_path,
            had_callbacks=bool(callbacks),
            start_time=time.monotonic(),
            **kwargs,
        )
        for callback in callbacks:
            lock = BundleVersionLock(callback.bundle_name, callback.bundle_version)  # type: ignore[no-untyped-call]
            self._locks.enter_context(lock)
        launched = functools.partial(self._on_launched, process)
        self.selector.register(process.done, selectors.EVENT_READ, (launched, self._unwatch))
        self.send_msg(request, request_id=0)
        return self

    # --- the launch ---

    def _on_launched(self, pending: PendingLaunch, done: socket.socket) -> bool:
        try:
            self._process = pending.take()
        except AircellError as error:
            self.fail(error)
            return False
        except Exception as error:
            self.process_log.exception("The sandbox could not be asked for", logger="aircell")
            self.fail(AircellError(f"The sandbox could not be asked for: {type(error).__name__}: {error}."))
            return False
        self.stdin = self.sandbox.requests
        self.stdin.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._watch_sandbox()
        self._guard_readers(self.process_log, functools.partial(guarded.output, allowance=MAX_OUTPUT))
        return False

    def _on_launch_event(self, event: Mapping[str, Any]) -> None:
        super()._on_launch_event(event)
        self.awaited_image = event.get("image") if event.get("event") in (State.PULLING, State.BUILDING) else None

    def _on_ready(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        if self.parked:
            return
        self.start_time = time.monotonic()  # the manager's limit is on the parsing, not on the way to it
        try:
            super()._on_ready(facts)
        except Exception as error:  # an image may have brought an agent of its own, which says what it likes
            self._refuse(f"facts about itself that are none ({type(error).__name__}: {error})")

    def unpark(self) -> None:
        """Lets the sandbox go on, and the clock run."""
        self.parked = False
        self.start_time = time.monotonic()
        if self._facts is not None and not self._process.ready:
            self._on_ready(self._facts)

    # --- what the sandbox says ---

    def _handle_request(self, msg: Any, log: FilteringBoundLogger, req_id: int) -> None:
        if isinstance(msg, DagFileParsingResult):
            if lie := self._violation(msg):
                self._refuse(lie)
            if not self._refused:
                super()._handle_request(msg, log, req_id)
        elif not worker_secrets.answer(self, msg, req_id):
            super()._handle_request(msg, log, req_id)

    def _violation(self, result: DagFileParsingResult) -> str | None:
        if self.had_callbacks:
            return "a result, where callbacks were to be run"
        path = self.request.file
        if not _inside(Path(path), self.request.bundle_path):
            return "a result, while the file has become a link that leads out of its bundle"
        file = validate.RequestedFile(
            path=path,
            relative=self.dag_file_rel_path,
            is_archive=not path.endswith(".py") and zipfile.is_zipfile(path),
            serializer_version=DagSerialization.SERIALIZER_VERSION,
        )
        return validate.violation(result, file)

    def _refuse(self, what: str) -> None:
        """Ends a sandbox that says what it may not; nothing that it said counts."""
        self._refused = True
        self.refuse(
            f"Aircell refused what the sandbox of this file sent: {what}. Nothing of it was stored, and no file that "
            "it names was read."
        )
        self._process.send_signal(signal.SIGKILL)

    def refuse(self, why: str) -> None:
        """Makes ``why`` the import error of the file, and the only thing that came of the parse."""
        self.process_log.error(why, logger="aircell")
        self.parsing_result = DagFileParsingResult(
            fileloc=self.request.file, serialized_dags=[], import_errors={self.dag_file_rel_path: why}
        )

    def _deliver(self, send: Callable[[], None]) -> None:
        try:
            super()._deliver(send)
        except BlockingIOError:  # from SO_SNDTIMEO
            self._refuse(f"nothing that shows that it reads what it is sent, for {SEND_SECONDS} s")
        except (BrokenPipeError, ConnectionResetError):
            self.process_log.debug("The sandbox ended before it read a message", logger="aircell")

    # --- the end ---

    def fail(self, error: AircellError) -> None:
        """Ends it for a reason that is not the file's."""
        self._blame(error)
        LaunchLog(self.process_log).failed(error)
        if isinstance(self._process, SandboxTracker):
            self._process.give_up(error)
        else:
            self._exit_code = EXIT_NEVER_RAN

    def _blame(self, error: AircellError) -> None:
        self.failure = skew.with_worker(error) if isinstance(error, IncompatibleImage) else error

    @property
    def is_ready(self) -> bool:
        return self.failure is not None or super().is_ready

    def _check_subprocess_exit(self, *args: Any, **kwargs: Any) -> int | None:
        if isinstance(self._process, SandboxTracker):
            return super()._check_subprocess_exit(*args, **kwargs)
        return super(SandboxedProcess, self)._check_subprocess_exit(*args, **kwargs)

    def conclude(self) -> None:
        """Decides, once ``is_ready``, between ``failure`` and ``parsing_result``."""
        process = self._process
        if self.failure is not None or self.parsing_result is not None or not isinstance(process, SandboxTracker):
            return
        if process.error is not None:
            self._blame(process.error)
            return
        exit = process.sandbox.exit
        if exit is None or (exit.code is None and exit.signal is None):
            reason = exit.reason if exit else "nobody knows how it ended."
            self.fail(SandboxLost(f"The sandbox went away during the parse: {reason}", sandbox=process.sandbox.id))
        elif not self.had_callbacks:
            how = exit.reason or f"It exited with code {exit.code}."
            self.refuse(f"The sandbox of this file ended before the file was parsed. {how}")

    def close(self) -> None:
        """Gives everything back; whatever still runs is ended."""
        if isinstance(self._process, PendingLaunch):
            self._unwatch_if_watched(self._process.done)
            self._process.abandon()
        else:
            for sock in (self.sandbox.lifeline, self.sandbox.events):
                self._unwatch_if_watched(sock)
        super().close()  # type: ignore[no-untyped-call]
        if isinstance(self._process, SandboxTracker):
            self.sandbox.close()
        self._locks.close()

    def _unwatch_if_watched(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):  # not registered, or closed and not registered
            self.selector.unregister(sock)


def _launch(request: DagFileParseRequest, relative: str, log: FilteringBoundLogger) -> SandboxTracker:
    """Resolves the file's sandbox and asks for it. Raises AircellError. Runs in a thread of its own."""
    file = Path(request.file)
    if not _inside(file, request.bundle_path):
        raise InvalidSpec(
            f"{file} is a link that leads out of its bundle {request.bundle_path}.",
            hint="Put the file itself, or a link to another place in the bundle, there.",
        )
    role = "callback" if request.callback_requests else "parse"
    context = {"bundle_name": request.bundle_name, "relative_fileloc": relative, "role": role}
    resolved = plan.plan("parse", file=file, bundle_root=request.bundle_path, context=context)
    return launch(
        resolved,
        bundle_name=request.bundle_name,
        bundle_path=request.bundle_path,
        args={"entry": "parse"},
        role=role,
        labels={"bundle": request.bundle_name, "file": relative},
        log=log,
    )


def _inside(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
