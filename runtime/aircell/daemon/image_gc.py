"""Removes images that aircelld pulled or built and that nobody uses any more: by policy, or when asked to.

Never one that a sandbox was made from, or that a launch or a pull is about to use (see ``image_holds.py``); never a
pinned one; never one that aircelld did not bring, or to which somebody else gave a name.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from aircell.backends.base import Backend
from aircell.daemon.config import ImageGcSettings
from aircell.daemon.engines import Engines
from aircell.daemon.image_holds import ImageHolds
from aircell.daemon.image_ledger import Entry, ImageLedger
from aircell.errors import AircellError
from aircell.status import ImageInfo

log = logging.getLogger(__name__)

InUse = Callable[[], Iterable[str]]
"""References, or engines' ids, of images that are to stay although no sandbox shows it."""


class ImageGc:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: ImageGcSettings,
        engines: Engines,
        ledger: ImageLedger,
        holds: ImageHolds,
        in_use: InUse = tuple,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._ledger = ledger
        self._holds = holds
        self._in_use = in_use

    async def run(self) -> None:
        """Looks at each interval, until it is cancelled. An engine that fails is asked again the next time."""
        while True:
            await asyncio.sleep(self._settings.interval)
            for name, backend in self._engines:
                try:
                    await self.tidy(backend)
                except Exception:
                    log.exception("the images of backend %s cannot be tidied up; the next time they may", name)

    async def tidy(self, backend: Backend) -> None:
        """What the settings say."""
        settings = self._settings
        for id in await _of_sandboxes(backend):
            self._ledger.used(backend.name, id)
        if settings.unused_seconds is not None:
            ours = self._ledger.of(backend.name)
            old = unused(ours, seconds=settings.unused_seconds, keep=settings.keep, now=time.time())
            await self._remove(backend, old, "not used for long")
        if settings.disk_percent is not None:
            await self._make_room(backend, settings.disk_percent)

    async def prune(self, backend: Backend, *, dry_run: bool = False) -> list[dict[str, Any]]:
        """Removes every image that may be removed; with ``dry_run`` only tells which those are."""
        return await self._remove(backend, self._ledger.of(backend.name), "pruned on request", dry_run=dry_run)

    async def _make_room(self, backend: Backend, percent: float) -> None:
        folder = await backend.image_folder()
        for entry in self._ledger.of(backend.name):
            disk = await asyncio.to_thread(shutil.disk_usage, folder)
            if 100 * disk.used / disk.total <= percent:
                return
            await self._remove(backend, [entry], f"the disk of {folder} is more than {percent:g} % full")

    async def _remove(
        self, backend: Backend, entries: Iterable[Entry], why: str, *, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        removed = []
        for entry in entries:
            # One at a time: launches wait meanwhile.
            async with self._holds.removing(backend.name):
                image = await self._removable(backend, entry)
                if image is None:
                    continue
                if not dry_run and not await self._remove_one(backend, entry, image, why):
                    continue
            removed.append({**asdict(image), "last_used": entry.last_used})
        return removed

    async def _removable(self, backend: Backend, entry: Entry) -> ImageInfo | None:
        """The image as it is now, if it may be removed."""
        image = await backend.image(entry.id)
        if image is None:
            self._ledger.forget(entry)
            return None
        named_by_others = not entry.names.issuperset(image.tags)
        return None if named_by_others or entry.id in await self._in_use_now(backend) else image

    async def _remove_one(self, backend: Backend, entry: Entry, image: ImageInfo, why: str) -> bool:
        """Whether it is gone. An engine refuses what a container of somebody else needs."""
        try:
            for name in (*image.tags, image.id):
                await backend.remove_image(name)
        except AircellError as error:
            log.warning("image %s stays: %s", entry.id, error)
            return False
        self._ledger.forget(entry)
        log.info("removed image %s (%s): %s", entry.id, ", ".join(image.tags), why)
        return True

    async def _in_use_now(self, backend: Backend) -> set[str]:
        """Ids of images that sandboxes have, that launches of this aircelld use, and that are to stay in any case."""
        used = await _of_sandboxes(backend)
        for reference in (*self._holds.held(backend.name), *self._settings.pinned, *self._in_use()):
            if image := await backend.image(reference):
                used.add(image.id)
        return used


def unused(entries: Sequence[Entry], *, seconds: float, keep: int, now: float) -> list[Entry]:
    """Of images, the one that was not used for longest first, those to be removed."""
    return [entry for entry in entries[: max(0, len(entries) - keep)] if entry.last_used < now - seconds]


async def _of_sandboxes(backend: Backend) -> set[str]:
    """Ids of the images of every sandbox on the engine, whichever aircelld made it."""
    return {sandbox.image for sandbox in await backend.sandboxes({})}
