"""Images on the node: pull policies, and one pull for all who want the same image at the same time.

Whoever gets an image from here may use it, see ``rights.py``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aircell.backends.base import Backend, PullProgress, RegistryAuth
from aircell.daemon.credentials import Keyring
from aircell.daemon.private_images import PrivateImages
from aircell.daemon.rights import Rights, unauthorized
from aircell.errors import AircellError, ImageNotFound, ImageUnauthorized, RegistryFailed
from aircell.reference import Reference
from aircell.status import ImageInfo

log = logging.getLogger(__name__)

Progress = Callable[[PullProgress], None]
PullPolicy = Literal["always", "missing", "never"]

_PROGRESS_INTERVAL = 0.5
_PAUSES = (1.0, 4.0)
"""Seconds before each further try of a pull that a registry broke off."""


@dataclass
class _Pull:
    task: asyncio.Future[ImageInfo]
    listeners: list[Progress] = field(default_factory=list)


class ImageStore:
    """Belongs to one event loop."""

    def __init__(self, keyring: Keyring, rights: Rights, private: PrivateImages) -> None:
        self._keyring = keyring
        self._rights = rights
        self._private = private
        self._pulls: dict[tuple[str, str, str | None], _Pull] = {}

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
        return image

    async def _pull(self, backend: Backend, reference: str, credentials: str | None, progress: Progress) -> ImageInfo:
        key = (backend.name, reference, credentials)
        pull = self._pulls.get(key)
        if pull is None:
            pull = self._pulls[key] = self._begin(backend, reference, credentials)
            pull.task.add_done_callback(lambda _: self._forget(key, pull))
        progress(PullProgress())
        pull.listeners.append(progress)
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.listeners.remove(progress)
            if not pull.listeners:
                self._forget(key, pull)  # at once, so that whoever comes next does not join a cancelled pull
                pull.task.cancel()

    def _begin(self, backend: Backend, reference: str, credentials: str | None) -> _Pull:
        told = time.monotonic()

        def report(progress: PullProgress) -> None:
            nonlocal told
            if time.monotonic() - told >= _PROGRESS_INTERVAL:
                told = time.monotonic()
                for listener in pull.listeners:
                    listener(progress)

        pull = _Pull(asyncio.ensure_future(self._fetch(backend, reference, credentials, report)))
        return pull

    async def _fetch(self, backend: Backend, reference: str, credentials: str | None, report: Progress) -> ImageInfo:
        """Pulls, and remembers what took credentials."""
        name = Reference.parse(reference)
        auth = await self._keyring.read(credentials, name)
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
        if auth is not None:
            await self._note_private(backend, image)
        return image

    async def _note_private(self, backend: Backend, image: ImageInfo) -> None:
        """Also forgets what was removed from the node since."""
        self._private.came(backend.name, image)
        known = self._private.ids(backend.name)
        listed = await backend.images()
        self._private.forget(backend.name, known - {each.id for each in listed})

    def _forget(self, key: tuple[str, str, str | None], pull: _Pull) -> None:
        if self._pulls.get(key) is pull:
            del self._pulls[key]


async def _persistently(backend: Backend, reference: str, auth: RegistryAuth | None, report: Progress) -> ImageInfo:
    for pause in _PAUSES:
        try:
            return await backend.pull(reference, auth, report)
        except RegistryFailed as error:
            log.warning("%s Trying again in %g s.", error.message, pause)
            await asyncio.sleep(pause)
    return await backend.pull(reference, auth, report)
