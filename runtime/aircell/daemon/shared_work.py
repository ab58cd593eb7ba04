"""Work that several may want at the same time, done once: pulls and builds of images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

P = TypeVar("P")
T = TypeVar("T")

_PROGRESS_INTERVAL = 0.5


@dataclass(eq=False)
class _Work(Generic[P, T]):
    listeners: list[Callable[[P], None]] = field(default_factory=list)
    task: asyncio.Future[T] = field(init=False)
    _told: float = field(default_factory=time.monotonic)
    _timer: asyncio.TimerHandle | None = None

    def report(self, progress: P) -> None:
        """Tells the listeners, at once or when the interval is over; then only what came last."""
        if self._timer:
            self._timer.cancel()
        wait = self._told + _PROGRESS_INTERVAL - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(wait, 0), self._tell, progress)

    def _tell(self, progress: P) -> None:
        self._told = time.monotonic()
        if not self.task.done():
            for listener in self.listeners:
                listener(progress)


class SharedWork(Generic[P, T]):
    """Belongs to one event loop. ``P`` is what is told of the progress, ``T`` what comes of it."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Work[P, T]] = {}

    async def join(
        self,
        key: Hashable,
        begin: Callable[[Callable[[P], None]], Coroutine[Any, Any, T]],
        listener: Callable[[P], None],
    ) -> T:
        """What comes of the work called ``key``, which ``begin`` starts when nobody is at it.

        ``begin`` gets the function to tell its progress to; ``listener`` hears of it at most twice a second, and of
        what came last. Cancelling the last of several callers cancels the work.
        """
        work = self._running.get(key)
        if work is None:
            work = self._running[key] = _Work()
            work.task = asyncio.ensure_future(begin(work.report))
            work.task.add_done_callback(lambda _: self._forget(key, work))
        work.listeners.append(listener)
        try:
            return await asyncio.shield(work.task)
        finally:
            work.listeners.remove(listener)
            if not work.listeners:
                self._forget(key, work)  # at once, so that whoever comes next does not join work that is cancelled
                work.task.cancel()

    def _forget(self, key: Hashable, work: _Work[P, T]) -> None:
        if self._running.get(key) is work:
            del self._running[key]
