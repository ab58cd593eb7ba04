"""Images on the node: pull policies, and one pull for all who want the same image at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aircell.backends.base import Backend, PullProgress, RegistryAuth
from aircell.daemon.credentials import Credentials
from aircell.errors import ImageNotFound, InvalidSpec
from aircell.status import ImageInfo

Progress = Callable[[PullProgress], None]
PullPolicy = Literal["always", "missing", "never"]

_PROGRESS_INTERVAL = 0.5


@dataclass
class _Pull:
    task: asyncio.Future[ImageInfo]
    listeners: list[Progress] = field(default_factory=list)


class ImageStore:
    """Belongs to one event loop."""

    def __init__(self, credentials: Mapping[str, Credentials]) -> None:
        self._credentials = credentials
        self._pulls: dict[tuple[str, str, str | None], _Pull] = {}

    async def ensure(
        self, backend: Backend, reference: str, policy: PullPolicy, credentials: str | None, progress: Progress
    ) -> ImageInfo:
        """The image on the node, pulled when the policy wants it.

        ``progress`` is called at most twice a second, and once when a pull begins. Cancelling the last of several
        callers that wait for one pull cancels the pull. Raises an ImageError, ImagePullFailed or EngineUnavailable.
        """
        if policy != "always" and (found := await backend.image(reference)):
            return found
        if policy == "never":
            raise ImageNotFound(
                f"the image {reference} is not on this node, and pull_policy is `never`.",
                hint="Load it into the engine, or set pull_policy to `missing`.",
            )
        return await self._pull(backend, reference, credentials, progress)

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

        pull = _Pull(asyncio.ensure_future(backend.pull(reference, self._auth(credentials), report)))
        return pull

    def _forget(self, key: tuple[str, str, str | None], pull: _Pull) -> None:
        if self._pulls.get(key) is pull:
            del self._pulls[key]

    def _auth(self, name: str | None) -> RegistryAuth | None:
        if name is None:
            return None
        if name not in self._credentials:
            raise InvalidSpec(
                f"this node has no registry credentials called {name!r}; "
                f"it has: {', '.join(self._credentials) or 'none'}.",
                hint="Add them under `registry_credentials` in aircelld's configuration.",
            )
        return self._credentials[name].read()
