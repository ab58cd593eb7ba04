"""Which images of this node were pulled with credentials: a file that outlives aircelld."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aircell.errors import InvalidSpec
from aircell.reference import Reference
from aircell.status import ImageInfo

_Content = dict[str, dict[str, str]]
"""By backend: an image's id, or the full name of one that is being pulled, to where it comes from."""


class PrivateImages:
    """Belongs to one event loop, and to one aircelld as its state folder does."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidSpec for a file that cannot be read: to forget what it holds would open private images."""
        self._path = path
        self._images: _Content = {}
        if path.exists():
            try:
                self._images = TypeAdapter(_Content).validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not what aircelld wrote"
                raise InvalidSpec(
                    f"{path} cannot be read: {reason}.",
                    hint="It tells which images were pulled with credentials: remove it only together with them.",
                ) from error

    def source(self, backend: str, image: ImageInfo) -> str:
        """Where a private image was pulled from, as ``repo@sha256:...``; empty for one that is not private."""
        known = self._images.get(backend, {})
        names = (image.id, *(str(Reference.parse(tag)) for tag in image.tags))
        return next((known[name] for name in names if name in known), "")

    def expect(self, backend: str, reference: str) -> None:
        """Before a pull with credentials: whatever comes of it, an image of that name is private."""
        name = str(Reference.parse(reference))
        self._images.setdefault(backend, {})[name] = name
        self._save()

    def came(self, backend: str, image: ImageInfo) -> None:
        """After that pull."""
        self._images.setdefault(backend, {})[image.id] = image.digest or image.reference
        self.expect_no_more(backend, image.reference)

    def inherit(self, backend: str, base: ImageInfo, image: ImageInfo) -> None:
        """Whoever may not have ``base`` may not have ``image``, which has it inside."""
        source = self.source(backend, base)
        if source and self.source(backend, image) != (base.digest or source):
            self._images[backend][image.id] = base.digest or source
            self._save()

    def expect_no_more(self, backend: str, reference: str) -> None:
        """After that pull, or when it failed."""
        self._images.get(backend, {}).pop(str(Reference.parse(reference)), None)
        self._save()

    def ids(self, backend: str) -> set[str]:
        """Of all private images that were pulled."""
        return {name for name in self._images.get(backend, {}) if name.startswith("sha256:")}

    def forget(self, backend: str, ids: Iterable[str]) -> None:
        """Images that are on the node no more."""
        for gone in ids:
            del self._images[backend][gone]
        self._save()

    def _save(self) -> None:
        """Whole or not at all."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._images, indent=1))
        new.replace(self._path)
