"""Images on the node: pull policies, and one pull for all who want the same image at the same time.

Whoever gets an image from here may use it, see ``rights.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Literal

from aircell.backends.base import Backend, PullProgress, RegistryAuth
from aircell.daemon.credentials import Keyring
from aircell.daemon.image_holds import ImageHolds
from aircell.daemon.image_ledger import ImageLedger
from aircell.daemon.private_images import PrivateImages
from aircell.daemon.rights import Rights, unauthorized
from aircell.daemon.shared_work import SharedWork
from aircell.errors import AircellError, ImageNotFound, ImageUnauthorized, RegistryFailed
from aircell.reference import Reference
from aircell.status import ImageInfo

log = logging.getLogger(__name__)

Progress = Callable[[PullProgress], None]
PullPolicy = Literal["always", "missing", "never"]

_PAUSES = (1.0, 4.0)
"""Seconds before each further try of a pull that a registry broke off."""


class ImageStore:
    """Belongs to one event loop."""

    def __init__(
        self, keyring: Keyring, rights: Rights, private: PrivateImages, ledger: ImageLedger, holds: ImageHolds
    ) -> None:
        self._keyring = keyring
        self._rights = rights
        self._private = private
        self._ledger = ledger
        self._holds = holds
        self._pulls: SharedWork[PullProgress, ImageInfo] = SharedWork()

    def hold(self, backend: Backend, reference: str) -> contextlib.AbstractAsyncContextManager[None]:
        """While the context lasts the image is not removed, as if a sandbox had been made from it."""
        return self._holds.hold(backend.name, reference)

    def made_here(self, backend: Backend, base: ImageInfo, image: ImageInfo) -> None:
        """Notes that an image which aircelld itself builds is on the node, and used: as private as its base."""
        self._private.inherit(backend.name, base, image)
        self._ledger.made(backend.name, None, image)

    async def ensure(
        self, backend: Backend, reference: str, policy: PullPolicy, credentials: str | None, progress: Progress
    ) -> ImageInfo:
        """The image on the node, pulled when the policy wants it, for whoever may use it with these credentials.

        ``progress`` is called at most twice a second, and once when a pull begins. Cancelling the last of several
        callers that wait for one pull cancels the pull. Raises an ImageError, ImagePullFailed or EngineUnavailable,
        and what ``Keyring.read`` and ``Rights.check`` raise.
        """
        image = None if policy == "always" else await backend.image(reference)
        if image is None and policy == "never":
            raise ImageNotFound(
                f"the image {reference} is not on this node, and pull_policy is `never`.",
                hint="Load it into the engine, or set pull_policy to `missing`.",
            )
        if image is None:
            image = await self._pull(backend, reference, credentials, progress)
        # After a pull, too: an engine that has an image already does not always ask its registry.
        await self._rights.check(backend.name, image, credentials)
        self._ledger.used(backend.name, image.id)
        return image

    async def _pull(self, backend: Backend, reference: str, credentials: str | None, progress: Progress) -> ImageInfo:
        progress(PullProgress())
        return await self._pulls.join(
            (backend.name, reference, credentials),
            lambda report: self._fetch(backend, reference, credentials, report),
            progress,
        )

    async def _fetch(self, backend: Backend, reference: str, credentials: str | None, report: Progress) -> ImageInfo:
        """Pulls, and remembers that it was us, and what took credentials."""
        name = Reference.parse(reference)
        auth = await self._keyring.read(credentials, name)
        before = {image.id: image for image in await backend.images()}
        everybodys = {id for id, image in before.items() if not self._private.source(backend.name, image)}
        if auth is not None:
            self._private.expect(backend.name, reference)
        try:
            image = await _persistently(backend, reference, auth, report)
        except AircellError as error:
            if auth is not None:
                self._private.expect_no_more(backend.name, reference)
            if isinstance(error, ImageUnauthorized):
                raise unauthorized(name, credentials, "is not given by its registry to", error.message) from error
            raise
        self._ledger.made(backend.name, before.get(image.id), image)
        if auth is not None and image.id not in everybodys:
            await self._note_private(backend, image)
        elif auth is not None:
            self._private.expect_no_more(backend.name, reference)
        return image

    async def _note_private(self, backend: Backend, image: ImageInfo) -> None:
        """Also forgets what was removed from the node since."""
        self._private.came(backend.name, image)
        known = self._private.ids(backend.name)
        listed = await backend.images()
        self._private.forget(backend.name, known - {each.id for each in listed})


async def _persistently(backend: Backend, reference: str, auth: RegistryAuth | None, report: Progress) -> ImageInfo:
    for pause in _PAUSES:
        try:
            return await backend.pull(reference, auth, report)
        except RegistryFailed as error:
            log.warning("%s Trying again in %g s.", error.message, pause)
            await asyncio.sleep(pause)
    return await backend.pull(reference, auth, report)
