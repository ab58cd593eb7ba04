"""What happens to a sandbox, as lines of the log of the workload that it is for."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aircell.errors import AircellError, Family
from aircell.status import ExitStatus, State

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PROGRESS_SECONDS = 10.0
"""At most one line about a pull, or a build, in this time."""
_BLAME: Mapping[Family, str] = {
    "refused": "Refused, by the node's policy or by the configuration",
    "user": "The image failed, or what is in it",
    "machinery": "Aircell or the container engine failed, not the task",
}


class LaunchLog:
    """Writes to one workload's log. ``clock`` is in seconds."""

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._started = clock()
        self._progress_due = 0.0

    def requested(self, sandbox: str, image: str, backend: str) -> None:
        self._log.info("Sandbox requested", sandbox=sandbox, image=image, backend=backend, logger="aircell")

    def event(self, event: Mapping[str, Any]) -> None:
        """A launch event of aircelld. The last, ``exited`` and ``failed``, come through ``ended`` and ``failed``."""
        state = event.get("event")
        if state == State.PULLING:
            self._pulling(event)
        elif state == State.BUILDING:
            self._building(event)
        elif state == State.CREATING:
            self._log.info(
                "Sandbox image is on the node", image=event.get("image"), digest=event.get("digest"), logger="aircell"
            )

        elif state == State.RUNNING:
            if event.get("ready"):
                facts = {name: event.get(name) for name in ("kind", "digest")}
                self._log.info("A sandbox was ready", **facts, logger="aircell")
            for name, why in event.get("preload_errors", {}).items():
                self._log.warning(f"Module {name} of `preload` was left out: {why}", logger="aircell")

    def ready(self, facts: Mapping[str, Any]) -> None:
        """The sandbox has the job. ``facts`` come from inside it, so they may be anything."""
        versions = {name: str(facts.get(name))[:100] for name in ("python", "airflow_core", "task_sdk")}
        self._log.info("Sandbox ready", seconds=self._seconds(), **versions, logger="aircell")

    def failed(self, error: AircellError) -> None:
        """The job never ran, or its sandbox was lost."""
        for line in error.detail.splitlines():
            self._log.error(line, logger="aircell.container")
        self._log.error(
            f"{_BLAME[error.family]}: {error.message}",
            hint=error.hint,
            kind=type(error).__name__,
            sandbox=error.sandbox,
            logger="aircell",
        )

    def ended(self, exit: ExitStatus) -> None:
        """The job ran to its end; says what an exit code alone does not."""
        reason = exit.reason
        if not reason and exit.signal:
            reason = f"Ended by {_signal_name(exit.signal)}; the engine does not say who sent it."
        if reason:
            level = self._log.error if exit.oom_killed else self._log.warning
            level(reason, out_of_memory=exit.oom_killed, logger="aircell")

    def _pulling(self, event: Mapping[str, Any]) -> None:
        if not self._due():
            return
        self._log.info(
            "Pulling the sandbox's image",
            image=event.get("image"),
            done=_size(event.get("done")),
            total=_size(event.get("total")),
            seconds=self._seconds(),
            logger="aircell",
        )

    def _building(self, event: Mapping[str, Any]) -> None:
        if self._due():
            self._log.info(
                "Building the sandbox's image",
                image=event.get("image"),
                base=event.get("base"),
                line=event.get("line"),
                seconds=self._seconds(),
                logger="aircell",
            )

    def _due(self) -> bool:
        """Whether it is time for another line about progress; if so, the next is due later."""
        if self._clock() < self._progress_due:
            return False
        self._progress_due = self._clock() + PROGRESS_SECONDS
        return True

    def _seconds(self) -> float:
        return round(self._clock() - self._started, 3)


def _size(count: int | None) -> str:
    return f"{count / 2**20:.1f} MiB" if count else "unknown"


def _signal_name(number: int) -> str:
    names = {int(each): each.name for each in signal.Signals}
    return names.get(number, f"signal {number}")
