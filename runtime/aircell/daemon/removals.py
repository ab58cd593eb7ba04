"""Removing what was made beforehand and is not wanted any more, while nobody waits for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aircell.daemon.concurrency import settle
from aircell.daemon.place import Place
from aircell.errors import AircellError, EngineUnavailable

log = logging.getLogger(__name__)

_TRIES = 3
"""How often a removal is tried, before it is the reaper's."""
_PAUSE = 1.0
"""Seconds between two tries."""


async def persistently(name: str, remove: Callable[[], Awaitable[None]]) -> None:
    """Removes ``name``, or leaves it to the reaper.

    An engine that is busy with the end of a container may refuse for a moment; one that is gone stays gone.
    """
    for _ in range(_TRIES):
        try:
            return await remove()
        except AircellError as error:
            log.warning("%s could not be removed: %s", name, error)
            if isinstance(error, EngineUnavailable):
                break
            await asyncio.sleep(_PAUSE)
    return log.error("%s is left to the reaper", name)


class Removals:
    """Those that have begun. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}

    def __contains__(self, name: str) -> bool:
        """Whether something of that name is being removed."""
        return name in self._tasks.values()

    def begin(self, name: str, place: Place) -> None:
        """Removes it, some time."""
        task = asyncio.create_task(persistently(name, lambda: settle(place.remove())), name=f"removal of {name}")
        self._tasks[task] = name
        task.add_done_callback(self._tasks.pop)

    async def finish(self) -> None:
        """Returns once all are done that have begun by now."""
        await asyncio.gather(*self._tasks)
