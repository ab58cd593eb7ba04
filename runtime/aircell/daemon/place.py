"""Where a job lives: what aircelld waits for, stops and removes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aircell.backends.base import Backend
from aircell.daemon.folder import Folder
from aircell.daemon.record import Record
from aircell.status import ExitStatus


class Place(Protocol):
    """``stop`` and ``remove`` are idempotent. All may raise AircellError."""

    async def wait(self) -> ExitStatus:
        """Returns once the job's agent has ended: how, as far as can be seen from outside."""

    async def stop(self, grace: float) -> None:
        """TERM, then KILL after ``grace`` seconds; returns when nothing runs."""

    async def remove(self) -> None:
        """By force if need be; returns when nothing of the job is left."""

    async def log_tail(self) -> str:
        """The end of what the agent itself wrote."""

    def save(self, record: Record) -> None:
        """Writes down whose job it is, for the next aircelld. Raises OSError."""


@dataclass(frozen=True)
class OwnSandbox:
    """One that the engine made for this job alone."""

    name: str
    backend: Backend
    folder: Folder

    async def wait(self) -> ExitStatus:
        """Raises NotFound when the engine does not have it."""
        return await self.backend.wait(self.name)

    async def stop(self, grace: float) -> None:
        await self.backend.stop(self.name, grace)

    async def remove(self) -> None:
        await self.backend.remove(self.name)
        await self.folder.remove()

    async def log_tail(self) -> str:
        return await self.backend.log_tail(self.name)

    def save(self, record: Record) -> None:
        self.folder.save(record)
