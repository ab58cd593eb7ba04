"""The requests to Docker's Engine API that the backend makes, each with its deadline and its words for an error.

Containers go by our id of the sandbox, which their names hold.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import aiohttp
from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer

from aircell.backends.docker import errors, translate
from aircell.backends.docker.config import DockerConfig, connection
from aircell.backends.docker.engine import Engine, read_engine
from aircell.backends.pull_failures import STALLED
from aircell.deadlines import within
from aircell.errors import InvalidSpec, NotFound

T = TypeVar("T")
Json = dict[str, Any]


class DockerClient:
    """What can be asked of one engine. Opened by the first request, in whose event loop it lives."""

    def __init__(self, config: DockerConfig) -> None:
        self._config = config
        self._docker: Docker | None = None
        self._address = ""

    async def close(self) -> None:
        """Idempotent; the next request would connect again."""
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()
            await docker.connector.close()

    # --- Questions ---

    async def engine(self) -> Engine:
        version = await self._ask(lambda docker: docker.version(), "asking for its version")
        info = await self._ask(lambda docker: docker.system.info(), "asking what it can do")
        networks = await self._ask(lambda docker: docker.networks.list(), "listing networks")
        return read_engine(version, info, networks)

    async def inspect(self, sandbox: str) -> Json:
        """Raises NotFound."""
        return await self._ask(lambda docker: _of(docker, sandbox).show(), "asking for a container", sandbox)

    async def containers(self, labels: Mapping[str, str]) -> list[Json]:
        filters = json.dumps({"label": translate.label_filter(labels)})
        found = await self._ask(lambda docker: docker.containers.list(all=True, filters=filters), "listing containers")
        return [container._container for container in found]

    async def logs(self, sandbox: str, lines: int) -> list[str]:
        """Raises NotFound."""
        return await self._ask(
            lambda docker: _of(docker, sandbox).log(stdout=True, stderr=True, tail=lines), "reading a log", sandbox
        )

    async def exit(self, sandbox: str) -> None:
        """Returns when the container does not run: it has ended, or was not started yet. Raises NotFound."""
        await self._call(lambda docker: _of(docker, sandbox).wait(), None, "waiting for its end", sandbox)

    # --- Containers ---

    async def create(self, sandbox: str, body: Json) -> None:
        await self._make(
            lambda docker: docker.containers.create(body, name=translate.name(sandbox)), "making a container", sandbox
        )

    async def start(self, sandbox: str) -> None:
        """Raises NotFound, ImageError or StartupFailed."""
        await self._make(lambda docker: _of(docker, sandbox).start(), "starting", sandbox, errors.starting)

    async def stop(self, sandbox: str, grace: int) -> None:
        """Idempotent."""
        seconds = self._config.make_timeout + grace
        try:
            await self._call(lambda docker: _of(docker, sandbox).stop(t=grace), seconds, "stopping", sandbox)
        except NotFound:
            return

    async def remove(self, sandbox: str) -> None:
        """By force. Idempotent. Raises EngineError, too, while another call removes it."""
        try:
            await self._make(lambda docker: _of(docker, sandbox).delete(force=True, v=True), "removing", sandbox)
        except NotFound:
            return

    # --- Images ---

    async def image(self, reference: str) -> Json | None:
        try:
            return await self._ask(lambda docker: docker.images.inspect(reference), "asking for an image")
        except (NotFound, InvalidSpec):
            return None

    async def images(self) -> list[Json]:
        return await self._ask(lambda docker: docker.images.list(), "listing images")

    async def pull(self, reference: str, auth: Mapping[str, str] | None, heard: Callable[[Json], None]) -> None:
        """``heard`` gets each message of Docker's. Raises an ImageError, ImagePullFailed or InvalidSpec."""

        patience = self._config.pull_stall_timeout

        async def pull(docker: Docker) -> None:
            messages: AsyncIterator[Json] = docker.images.pull(reference, auth=auth, stream=True)
            try:
                while (message := await within(patience, anext(messages, None))) is not None:
                    heard(message)
            except asyncio.TimeoutError as error:
                raise STALLED.error(reference, f"nothing came for {patience:g} s") from error

        await self._call(pull, self._config.pull_timeout, f"pulling {reference}", "", errors.pulling(reference))

    async def load(self, archive: BinaryIO, reference: str) -> None:
        seconds = self._config.pull_timeout
        await self._call(lambda docker: docker.images.import_image(archive), seconds, f"loading {reference}", "")

    async def build(self, context: BinaryIO, reference: str) -> None:
        """``context`` is a tar archive with a Dockerfile."""

        async def build(docker: Docker) -> None:
            await docker.images.build(fileobj=context, encoding="identity", tag=reference)

        await self._call(build, self._config.pull_timeout, f"adding a layer to make {reference}", "")

    async def remove_image(self, reference: str) -> None:
        """Idempotent."""
        try:
            await self._make(lambda docker: docker.images.delete(reference), f"removing the image {reference}", "")
        except NotFound:
            return

    # --- Helpers ---

    async def _ask(self, request: Callable[[Docker], Awaitable[T]], doing: str, sandbox: str = "") -> T:
        return await self._call(request, self._config.call_timeout, doing, sandbox)

    async def _make(
        self, request: Callable[[Docker], Awaitable[T]], doing: str, sandbox: str, refine: errors.Refine | None = None
    ) -> T:
        return await self._call(request, self._config.make_timeout, doing, sandbox, refine)

    async def _call(
        self,
        request: Callable[[Docker], Awaitable[T]],
        seconds: float | None,
        doing: str,
        sandbox: str,
        refine: errors.Refine | None = None,
    ) -> T:
        docker = self._connect()
        try:
            return await within(seconds, request(docker))
        except (DockerError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise errors.translate(
                error, doing=doing, host=self._address, seconds=seconds or 0, sandbox=sandbox, refine=refine
            ) from error

    def _connect(self) -> Docker:
        if self._docker is None:
            self._address, url, connector = connection(self._config)
            self._docker = Docker(url, connector=connector)
        return self._docker


def _of(docker: Docker, sandbox: str) -> DockerContainer:
    return docker.containers.container(translate.name(sandbox))
