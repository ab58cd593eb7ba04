"""Which images on the node are aircelld's own, and when each was last used: ``<state_dir>/images.json``.

An engine may hold images of others. Ours are those that were not there before aircelld pulled or built them, under the
names that they got then; an image that somebody else gave another name is no longer ours alone.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aircell.spec import Model
from aircell.status import ImageInfo

log = logging.getLogger(__name__)


class Entry(Model):
    """One image."""

    backend: str
    id: str
    """The engine's."""
    names: frozenset[str]
    """The names that aircelld gave it: with tags, as the engine shows them."""
    last_used: float
    """Seconds since the epoch."""


_FILE = TypeAdapter(list[Entry])


class ImageLedger:
    """Kept in a file across restarts of aircelld."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = {(entry.backend, entry.id): entry for entry in _read(file)}

    def of(self, backend: str) -> list[Entry]:
        """Our images on that backend's engine, the one that was not used for longest first."""
        ours = (entry for entry in self._entries.values() if entry.backend == backend)
        return sorted(ours, key=lambda entry: entry.last_used)

    def made(self, backend: str, before: ImageInfo | None, after: ImageInfo) -> None:
        """Notes an image that was pulled or built; ``before`` is what the engine had under the same id."""
        known = self._entries.get((backend, after.id))
        if before is not None and known is None:
            return  # somebody else's
        names = frozenset(after.tags) - frozenset(before.tags if before else ())
        if known is not None:
            names |= known.names
        self._put(Entry(backend=backend, id=after.id, names=names, last_used=time.time()))

    def used(self, backend: str, id: str) -> None:
        """Notes that an image is used now; one that is not ours is left alone."""
        if known := self._entries.get((backend, id)):
            self._put(known.model_copy(update={"last_used": time.time()}))

    def forget(self, entry: Entry) -> None:
        """Notes that an image is gone, or ours no longer."""
        self._entries.pop((entry.backend, entry.id), None)
        self._save()

    def _put(self, entry: Entry) -> None:
        self._entries[entry.backend, entry.id] = entry
        self._save()

    def _save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(_FILE.dump_json(list(self._entries.values())))
        new.replace(self._file)


def _read(file: Path) -> list[Entry]:
    try:
        return _FILE.validate_json(file.read_bytes()) if file.exists() else []
    except ValidationError as error:
        log.error("%s cannot be read; the images on the node now will stay: %s", file, error)
        return []
