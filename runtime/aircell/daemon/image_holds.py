"""Which images somebody is about to use, so that none of them is removed from under a launch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator


class ImageHolds:
    """Belongs to one event loop. Backends go by name, images by the reference that was asked for."""

    def __init__(self) -> None:
        self._held: Counter[tuple[str, str]] = Counter()
        self._removing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextlib.asynccontextmanager
    async def hold(self, backend: str, reference: str) -> AsyncIterator[None]:
        """Keeps an image, be it on the node yet or not; waits for a removal that has begun."""
        async with self._removing[backend]:
            self._held[backend, reference] += 1
        try:
            yield
        finally:
            self._held[backend, reference] -= 1

    def held(self, backend: str) -> set[str]:
        """References that are kept now."""
        self._held = +self._held
        return {reference for name, reference in self._held if name == backend}

    def removing(self, backend: str) -> asyncio.Lock:
        """To be had while an image is judged and removed: nobody gets a hold meanwhile."""
        return self._removing[backend]
