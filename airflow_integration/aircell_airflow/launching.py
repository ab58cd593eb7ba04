"""Asking for a sandbox without waiting for the answer.

aircelld accepts at once, but it may have to be started first, or may hang. A process that serves many sandboxes in one
loop cannot wait for that, so a thread does.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future

from airflow.sdk.execution_time.supervisor import NeverRaised, ProcessTracker

from aircell_airflow.sandboxed import KilledBy, SandboxTracker


class PendingLaunch(ProcessTracker):
    """Stands for the process until there is a :class:`SandboxTracker`; ``done`` is readable when ``take`` will tell."""

    ProcessNotFound = NeverRaised
    TimeoutExpired = TimeoutError

    def __init__(self, launch: Callable[[], SandboxTracker]) -> None:
        self.done, self._finished = socket.socketpair()
        self.ready = False
        self.held: list[Callable[[], None]] = []
        """Messages to send once the sandbox is ready, as in SandboxTracker."""
        self._outcome: Future[SandboxTracker] = Future()
        self._signal: int | None = None
        threading.Thread(target=self._run, args=(launch,), name="aircell-launch", daemon=True).start()

    @property
    def pid(self) -> int:
        """As SandboxTracker has it."""
        return os.getpid()

    def take(self) -> SandboxTracker:
        """The sandbox, which is the caller's from now on. Raises what the launch raised. Call it once done."""
        tracker = self._outcome.result(timeout=0)
        tracker.held += self.held
        return tracker

    def send_signal(self, s: signal.Signals) -> None:
        """Every signal that a supervisor sends ends a child that has not yet begun."""
        self._signal = s

    def wait(self, timeout: float | None) -> int:
        """The exit code once a signal came; TimeoutError before. Never blocks."""
        if self._signal is None:
            raise TimeoutError("the sandbox has not been launched yet")
        return KilledBy(-self._signal)

    def abandon(self) -> None:
        """Nobody will take the sandbox: it is given back as soon as it is there. Idempotent."""
        self.done.close()
        self._outcome.add_done_callback(_give_back)

    def _run(self, launch: Callable[[], SandboxTracker]) -> None:
        try:
            self._outcome.set_result(launch())
        except Exception as error:  # take() raises it again, in the thread that asked
            self._outcome.set_exception(error)
        self._finished.close()


def _give_back(outcome: Future[SandboxTracker]) -> None:
    if outcome.exception() is None:
        outcome.result().sandbox.close()
