"""When to make what nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aircell.deadlines import within

_PATIENCE = 5.0
"""Seconds for which what is made beforehand waits for cold starts. Where these never end, having more ready helps."""


class Calm:
    """There is calm while no job waits for a sandbox to be made. Belongs to one event loop."""

    def __init__(self) -> None:
        self._cold_starts = 0
        self._calm = asyncio.Event()
        self._calm.set()

    @contextlib.contextmanager
    def cold_start(self) -> Iterator[None]:
        """While a job waits for a sandbox to be made."""
        self._cold_starts += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._cold_starts -= 1
            if not self._cold_starts:
                self._calm.set()

    async def wait(self) -> None:
        """Returns when there is calm, or there has been none for a while."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(_PATIENCE, self._calm.wait())
