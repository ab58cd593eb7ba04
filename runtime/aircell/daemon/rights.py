"""Who may use an image that is on the node already: whoever its registry would give it to.

An engine shares what it has once pulled with everybody. So each use of a private image is put to its registry, with the
credentials that this very sandbox names; what the registry said is believed for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from aircell.daemon.credentials import Keyring
from aircell.daemon.private_images import PrivateImages
from aircell.daemon.registry_hosts import DEFAULT_FOLDERS, endpoints
from aircell.errors import ImageUnauthorized
from aircell.reference import Reference
from aircell.spec import AbsolutePath, Model
from aircell.status import ImageInfo

log = logging.getLogger(__name__)


class RightsSettings(Model):
    """What aircelld's configuration says under ``image_rights``."""

    verify: Literal["private", "all", "none"] = "private"
    """``private``: images that aircelld pulled with credentials. ``all``: every image that has come from a registry."""
    remember: Annotated[float, Field(ge=0)] = 300.0
    """Seconds for which a registry's consent holds."""
    registry_hosts: tuple[AbsolutePath, ...] = DEFAULT_FOLDERS
    """Mirrors, certificates and plain HTTP for registries, as containerd and Docker have them."""


class _Question(NamedTuple):
    source: str
    """``repo@sha256:...``"""
    credentials: str | None


class Rights:
    """Belongs to one event loop."""

    def __init__(
        self, settings: RightsSettings, hosts: Sequence[str], keyring: Keyring, private: PrivateImages
    ) -> None:
        """``hosts`` are folders that go before those of the settings."""
        self._settings = settings
        self._hosts = (*hosts, *settings.registry_hosts)
        self._keyring = keyring
        self._private = private
        self._granted: dict[_Question, float] = {}
        """Until when, on the monotonic clock."""
        self._asking: dict[_Question, asyncio.Task[None]] = {}

    async def check(self, backend: str, image: ImageInfo, credentials: str | None) -> None:
        """Returns when a sandbox with these credentials may use this image of the node.

        Asks nobody where there is nothing to ask or the answer is still known. Raises ImageUnauthorized when it may
        not, RightsUnknown when the registry cannot be asked, and what ``Keyring.read`` raises.
        """
        question = _Question(self._source(backend, image), credentials)
        if not question.source or self._granted.get(question, 0.0) > time.monotonic():
            return
        asking = self._asking.get(question)
        if asking is None:
            asking = self._asking[question] = asyncio.create_task(self._ask(question))
            asking.add_done_callback(lambda done: self._answered(question, done))
        await asyncio.shield(asking)

    def _answered(self, question: _Question, asking: asyncio.Task[None]) -> None:
        del self._asking[question]
        if not asking.cancelled() and (error := asking.exception()):
            log.debug("no consent for %s: %s", question.source, error)  # whoever waits hears of it, if anybody does

    def _source(self, backend: str, image: ImageInfo) -> str:
        """What to ask for; empty when nobody has to be asked."""
        if self._settings.verify == "none":
            return ""
        private = self._private.source(backend, image)
        return (image.digest or private) if private or self._settings.verify == "all" else ""

    async def _ask(self, question: _Question) -> None:
        from aircell.daemon import distribution  # its HTTP client takes 9 MiB, and most nodes have nothing to ask

        image = Reference.parse(question.source)
        auth = await self._keyring.read(question.credentials, image)
        where = await asyncio.to_thread(endpoints, image.registry, self._hosts)
        if not await distribution.gives(where, image, auth):
            raise unauthorized(image, question.credentials, "is on this node, but its registry does not give it to")
        log.info("%s gives %s to %s", image.registry, question.source, holder(question.credentials))
        now = time.monotonic()
        self._granted = {known: until for known, until in self._granted.items() if until > now}
        self._granted[question] = now + self._settings.remember


def holder(credentials: str | None) -> str:
    """Who asks a registry, in words."""
    return f"the registry credentials {credentials!r}" if credentials else "somebody without credentials"


def unauthorized(image: Reference, credentials: str | None, what: str, detail: str = "") -> ImageUnauthorized:
    """The error for an image that these credentials may not have; ``what`` comes before whom it is refused."""
    if credentials:
        hint = f"Check the image's name, and whether {credentials!r} in aircelld's configuration is still valid."
    else:
        hint = "Name credentials that may have it in `registry_credentials`, or check the image's name."
    return ImageUnauthorized(f"the image {image} {what} {holder(credentials)}.", hint=hint, detail=detail)
