"""Every sandbox that this aircelld looks after, with the task that does it, and the last ones that ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

from aircell.daemon.concurrency import end
from aircell.daemon.record import Sandbox
from aircell.errors import AircellError, NotFound

log = logging.getLogger(__name__)

_KEPT = 200
"""Ended sandboxes that ``ps --all`` and ``inspect`` still know."""


class Registry:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Sandbox, asyncio.Task[None]]] = {}
        self._ended: deque[Sandbox] = deque(maxlen=_KEPT)

    def add(self, sandbox: Sandbox, life: Coroutine[Any, Any, None]) -> None:
        """Looks after ``sandbox`` for as long as ``life`` runs."""
        task = asyncio.create_task(life, name=sandbox.id)
        self._live[sandbox.id] = (sandbox, task)
        task.add_done_callback(lambda _: self._forget(sandbox, task))

    def _forget(self, sandbox: Sandbox, task: asyncio.Task[None]) -> None:
        del self._live[sandbox.id]
        self._ended.append(sandbox)
        if not task.cancelled() and (error := task.exception()):
            log.error("sandbox %s is left to the reaper", sandbox.id, exc_info=error)
            sandbox.failed(AircellError(f"aircelld failed: {error!r}.", hint="Its log has the traceback."))

    def __contains__(self, name: str) -> bool:
        """Whether the sandbox that was made under that name is being looked after."""
        return any(sandbox.record.made_as == name for sandbox, _ in self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def sandboxes(self, *, all: bool) -> list[Sandbox]:
        """Those that are being looked after, oldest first; with ``all`` also the last that ended."""
        live = [sandbox for sandbox, _ in self._live.values()]
        return sorted([*self._ended, *live] if all else live, key=lambda sandbox: sandbox.record.created_at)

    def get(self, prefix: str) -> Sandbox:
        """The one whose id or ``made_as`` begins so. Raises NotFound when there is none, or more than one."""
        known = self.sandboxes(all=True)
        found = [sandbox for sandbox in known if prefix in sandbox.names] or [
            sandbox for sandbox in known if prefix and any(name.startswith(prefix) for name in sandbox.names)
        ]
        if len(found) != 1:
            what = f"{len(found)} sandboxes have ids that begin" if found else "no sandbox has an id that begins"
            raise NotFound(f"{what} with {prefix!r}.", hint="`aircell ps --all` lists them.")
        return found[0]

    async def leave(self) -> None:
        """Stops looking after them all: jobs that were handed over go on, other launches are undone."""
        await end(*(task for _, task in self._live.values()))
