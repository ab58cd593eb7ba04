"""Airflow's supervisor over a sandbox instead of a child process: shared by tasks, callbacks and parsing.

A supervisor watches a child through sockets and a ``ProcessTracker``. Here the sockets are the worker's ends of the
job's channels, and the tracker is the lifeline. Two things differ from a forked child and are handled here: the child
is not there yet when supervision starts (an image may have to be pulled), and it may have another version of Airflow.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.sdk.execution_time.comms import _RequestFrame
from airflow.sdk.execution_time.supervisor import NeverRaised, ProcessTracker, WatchedSubprocess

from aircell.client import Client, Sandbox
from aircell.errors import AircellError, IncompatibleImage, UserError
from aircell.spec import Job, LaunchRequest, Mount
from aircell.status import ExitStatus
from aircell_airflow import early_environment, guarded, settings, skew
from aircell_airflow.launch_log import LaunchLog
from aircell_airflow.plan import Resolved

if TYPE_CHECKING:
    from airflow.sdk.execution_time.comms import ErrorResponse
    from pydantic import BaseModel
    from structlog.typing import FilteringBoundLogger
    from typing_extensions import Self

    _Base = WatchedSubprocess
else:
    _Base = object  # the mixin's place is before a WatchedSubprocess

EXIT_NEVER_RAN = 70
"""EX_SOFTWARE of sysexits.h; the log says what failed."""

_DECODE = msgspec.msgpack.Decoder(_RequestFrame).decode

KilledBy = enum.IntEnum("KilledBy", {number.name: -number for number in signal.Signals})  # type: ignore[misc]
"""An exit code with a name, by which the supervisor knows a signal; psutil does the same."""
_NAMED_SIGNALS = frozenset(signal.Signals)


def launch(
    resolved: Resolved,
    *,
    bundle_name: str,
    bundle_path: Path,
    args: Mapping[str, Any],
    role: str,
    labels: Mapping[str, str],
    log: FilteringBoundLogger,
    traceparent: str = "",
) -> SandboxTracker:
    """Asks for the sandbox; returns once aircelld has accepted. Raises AircellError when it does not.

    The bundle appears in the sandbox where it is on the worker, read-only. ``args`` go to the runner. aircelld's spans
    belong below ``traceparent``.
    """
    path = str(bundle_path)
    environment = settings.child_environment(bundle_name, path)
    early, late = early_environment.split(resolved.spec)
    isolation = resolved.spec.parse_isolation if role == "parse" else "file"
    spec = resolved.spec.model_copy(update={"env": {**environment, **early}, "parse_isolation": isolation})
    request = LaunchRequest(
        backend=resolved.backend,
        spec=spec,
        job=Job(kind="runner", runner=_runner_source(), args=dict(args), env=late),
        role=role,  # type: ignore[arg-type]
        mounts=(Mount(source=path, target=path),),
        labels=dict(labels),
        traceparent=traceparent,
    )
    configured = settings.load("parse" if role == "parse" else "task")
    client = Client(configured.socket_path, autostart=configured.autostart)
    launch_log = LaunchLog(log)
    sandbox = client.launch(request.model_dump(mode="json"))
    launch_log.requested(sandbox.id, spec.image, resolved.backend)
    return SandboxTracker(sandbox, launch_log)


@functools.cache
def _runner_source() -> str:
    return resources.files("aircell_airflow").joinpath("runner.py").read_text()


class SandboxTracker(ProcessTracker):
    """The process that the supervisor believes to have, and what is known of the sandbox behind it."""

    ProcessNotFound = NeverRaised
    TimeoutExpired = TimeoutError

    def __init__(self, sandbox: Sandbox, log: LaunchLog) -> None:
        self.sandbox = sandbox
        self.log = log
        self.ready = False
        """The job has been handed over; messages can be sent."""
        self.held: list[Callable[[], None]] = []
        """Messages to send once ready."""
        self.error: AircellError | None = None
        """Why the job never ran."""
        self._asked_to_end: int | None = None

    @property
    def pid(self) -> int:
        """The supervisor's own: the API server wants one that stays the same, and the job's means nothing here."""
        return os.getpid()

    def send_signal(self, s: signal.Signals) -> None:
        """To the job's process group. Before there is a job, a signal that would end it cancels the launch."""
        if not self.ready:
            self._asked_to_end = s
        self.sandbox.signal(s)

    def give_up(self, error: AircellError) -> None:
        """Ends a sandbox that cannot be used."""
        self.error = error
        self.sandbox.signal(signal.SIGKILL)

    @property
    def finished(self) -> bool:
        self.error = self.error or self.sandbox.error
        return self.error is not None or self.sandbox.finished

    def wait(self, timeout: float | None) -> int:
        """The exit code, once there is one; TimeoutExpired before. Never blocks: the selector has the sockets."""
        if not self.finished:
            raise TimeoutError(f"sandbox {self.sandbox.id} still runs")
        if self.sandbox.exit is None or self.error is not None:
            return KilledBy(-self._asked_to_end) if self._asked_to_end else EXIT_NEVER_RAN
        return exit_code(self.sandbox.exit)


def exit_code(exit: ExitStatus) -> int:
    """The exit code in the form in which the supervisor logs it truthfully.

    It calls a code that has a name "terminated by signal", and SIGKILL "likely out of memory". So SIGKILL gets its
    name only with the kernel's evidence for that.
    """
    code = exit.returncode
    if exit.signal not in _NAMED_SIGNALS or (exit.signal == signal.SIGKILL and not exit.oom_killed):
        return code
    return KilledBy(code)


class SandboxedProcess(_Base):
    """Mixin for a ``WatchedSubprocess`` whose ``_process`` is a :class:`SandboxTracker`."""

    __slots__ = ()
    _process: SandboxTracker

    @classmethod
    def supervise(cls, process: SandboxTracker, log: FilteringBoundLogger, **fields: Any) -> Self:
        """The supervisor of a sandbox that was launched, with its channels watched and bounded.

        ``log`` is where the supervisor writes of requests; ``fields`` are what the class itself wants.
        """
        self = cls(
            pid=process.pid, stdin=process.sandbox.requests, process=process, start_time=time.monotonic(), **fields
        )
        self._watch_sandbox()
        self._guard_readers(log, functools.partial(guarded.lines, allowance=guarded.MAX_LINE))
        return self

    @property
    def sandbox(self) -> Sandbox:
        return self._process.sandbox

    def _watch_sandbox(self) -> None:
        """Registers the job's channels, the lifeline and the launch events with the supervisor's selector."""
        sandbox = self._process.sandbox
        self._register_pipe_readers(sandbox.stdout, sandbox.stderr, sandbox.requests, sandbox.logs, data={})
        self.selector.register(sandbox.lifeline, selectors.EVENT_READ, (self._on_lifeline, self._unwatch))
        self.selector.register(sandbox.events, selectors.EVENT_READ, (self._on_event, self._unwatch))

    def _guard_readers(self, log: FilteringBoundLogger, bound: Callable[..., guarded.Reader]) -> None:
        """Puts bounds on what comes out of the sandbox.

        A message that is none goes to ``_refuse``; ``bound`` makes the readers of output, see :mod:`guarded`. ``log``
        is where the supervisor writes of requests.
        """
        for sock, name in list(self._open_sockets.items()):
            read, on_close = self.selector.get_key(sock).data
            if name == "requests":
                handler = self.handle_requests(log)
                next(handler)
                read = guarded.messages(_DECODE, handler.send, self._refuse)
            else:
                read = bound(sock, read, dropped=functools.partial(self._dropped, name))
            self.selector.modify(sock, selectors.EVENT_READ, (read, on_close))

    def _refuse(self, what: str) -> None:
        """Ends a sandbox that sends what it may not."""
        self._process.give_up(UserError(f"The sandbox was ended because it sent {what}.", sandbox=self.sandbox.id))

    def _dropped(self, name: str, why: str) -> None:
        self.process_log.warning(f"The rest of {name} is dropped: the sandbox sent {why}", logger="aircell")

    def _on_lifeline(self, lifeline: socket.socket) -> bool:
        for packet in self._process.sandbox.read_lifeline():
            if packet["type"] == "ready":
                self._on_ready(packet["facts"])
        return self._still_watched(lifeline)

    def _on_event(self, events: socket.socket) -> bool:
        for event in self._process.sandbox.read_events():
            self._on_launch_event(event)
        return self._still_watched(events)

    def _on_launch_event(self, event: Mapping[str, Any]) -> None:
        self._process.log.event(event)

    def _still_watched(self, sock: socket.socket) -> bool:
        if sock not in self._process.sandbox.watched:
            self._unwatch(sock)
        return True  # or the supervisor would close the socket, which is the sandbox's to close

    def _unwatch(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)

    def _on_ready(self, facts: Mapping[str, Any]) -> None:
        """Versions are known: sends what has been waiting for them."""
        process = self._process
        try:
            self._subprocess_schema_version = skew.wire_schema(facts)
        except IncompatibleImage as error:
            process.give_up(error)
            return
        process.log.ready(facts)
        process.ready = True
        for send in process.held:
            self._deliver(send)
        process.held.clear()

    def send_msg(
        self, msg: BaseModel | None, request_id: int, error: ErrorResponse | None = None, **dump_opts: Any
    ) -> None:
        """As the supervisor does, but not before the image's version is known and somebody reads."""
        send = functools.partial(super().send_msg, msg, request_id, error, **dump_opts)
        if self._process.ready:
            self._deliver(send)
        else:
            self._process.held.append(send)

    def _deliver(self, send: Callable[[], None]) -> None:
        """Sends a message, unless nobody reads it any more: how the job ended is told by the lifeline."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send()

    def _check_subprocess_exit(self, raise_on_timeout: bool = False, expect_signal: int | None = None) -> int | None:
        process = self._process
        if process.sandbox.lifeline not in process.sandbox.watched:
            process.sandbox.read_lifeline()  # decides, in time, on an agent that went without a word
        if self._exit_code is None and process.finished:
            self._log_end()
        return super()._check_subprocess_exit(raise_on_timeout=raise_on_timeout, expect_signal=expect_signal)

    def _log_end(self) -> None:
        process = self._process
        if isinstance(process.error, IncompatibleImage):
            process.log.failed(skew.with_worker(process.error))
        elif process.error is not None:
            process.log.failed(process.error)
        elif process.sandbox.exit is not None:
            process.log.ended(process.sandbox.exit)
