"""The end of sandboxes: who waits for it, who brings it about, and what is removed afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

from aircell.daemon.bringup import LAST_WORDS
from aircell.daemon.concurrency import end, settle
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.place import OwnSandbox, Place
from aircell.daemon.record import Sandbox
from aircell.daemon.removals import persistently
from aircell.errors import AircellError, NotFound
from aircell.status import ExitStatus

log = logging.getLogger(__name__)

OWNER_GRACE = 5.0
"""Seconds beyond ``stop_grace`` in which an agent must have ended the job of a worker that is gone."""
RETRY = 1.0
"""Seconds between two questions to an engine that does not answer."""


class Keeper:
    """Of sandboxes wherever their jobs live. Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines) -> None:
        self._state_dir = config.state_dir
        self._engines = engines

    def folder(self, sandbox: Sandbox) -> Folder:
        """On the disk; it may not exist."""
        return Folder.of(self._state_dir, sandbox.record.made_as)

    def place(self, sandbox: Sandbox) -> Place:
        """Where its job lives, or is to live."""
        record = sandbox.record
        return sandbox.place or OwnSandbox(record.made_as, self._engines.get(record.backend), self.folder(sandbox))

    async def watch(self, sandbox: Sandbox, gate: Gate | None) -> ExitStatus:
        """How the job ended: by its agent's report if there is one, with what the engine saw of it."""
        guard = asyncio.ensure_future(self._stop_when_orphaned(sandbox))
        report = asyncio.ensure_future(gate.exit()) if gate else None
        try:
            seen = await self._end_of(sandbox)
            if report is None:
                return seen
            await asyncio.wait({report}, timeout=LAST_WORDS)
            if not report.done():
                return dataclasses.replace(seen, reason=seen.reason or "The agent was ended from outside the sandbox.")
            return dataclasses.replace(report.result(), oom_killed=report.result().oom_killed or seen.oom_killed)
        finally:
            await end(guard, *([report] if report else []))

    async def stop(self, sandbox: Sandbox, grace: float) -> None:
        """TERM, then KILL after ``grace`` seconds. Raises AircellError."""
        async with sandbox.changing:
            await settle(self.place(sandbox).stop(grace))

    async def undo(self, sandbox: Sandbox) -> None:
        """Removes what did not take the job, and now certainly never will: another can. Raises AircellError."""
        await self._remove(sandbox)
        sandbox.place = None
        own = sandbox.record.served_by(sandbox.id, "cold")
        sandbox.record = own.model_copy(update={"handed_over": False})

    async def see_off(self, sandbox: Sandbox, ending: ExitStatus | AircellError) -> None:
        """Removes all that there is of it, then tells how it ended. What cannot be removed now the reaper removes."""
        ended = time.time()
        try:
            sandbox.log = await self.place(sandbox).log_tail()
        except AircellError as error:
            log.debug("sandbox %s left no log: %s", sandbox.id, error)
        await persistently(f"sandbox {sandbox.id}", lambda: self._remove(sandbox))
        if isinstance(ending, AircellError):
            sandbox.failed(ending, ended)
            log.warning("sandbox %s failed: %s", sandbox.id, ending)
        else:
            sandbox.exited(ending, ended)
            log.info("sandbox %s exited: %s", sandbox.id, ending)

    async def _end_of(self, sandbox: Sandbox) -> ExitStatus:
        place = self.place(sandbox)
        while True:
            try:
                return await place.wait()
            except NotFound:
                return ExitStatus(reason="The sandbox was removed from the engine by somebody else.")
            except AircellError as error:
                log.warning("sandbox %s: the engine cannot be asked: %s", sandbox.id, error)
                await asyncio.sleep(RETRY)

    async def _stop_when_orphaned(self, sandbox: Sandbox) -> None:
        """The last net under an agent that did not end with its worker."""
        record = sandbox.record
        await record.owner.gone()
        await asyncio.sleep(record.spec.stop_grace + OWNER_GRACE)
        log.warning("sandbox %s outlived its worker (pid %d); stopping it", record.id, record.owner.pid)
        try:
            await self.stop(sandbox, grace=0)
        except AircellError as error:
            log.error("sandbox %s could not be stopped: %s", record.id, error)

    async def _remove(self, sandbox: Sandbox) -> None:
        """Idempotent. Raises AircellError when something of it may be left."""
        async with sandbox.changing:
            await settle(self.place(sandbox).remove())
