"""The Docker backend: a sandbox is one container.

State is the engine's alone: sandboxes are found by their label, and a container's name holds its sandbox's id.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar

from pydantic import ValidationError

from aircell.backends import mounts
from aircell.backends.base import Backend, EngineInfo, PullProgress, RegistryAuth, SandboxPlan
from aircell.backends.docker import engine, layers, translate
from aircell.backends.docker.client import DockerClient
from aircell.backends.docker.config import DockerConfig
from aircell.backends.docker.progress import Meter
from aircell.errors import EngineError, EngineUnavailable, InvalidSpec, NotFound, UnsupportedSpec
from aircell.reference import Reference
from aircell.spec import SandboxSpec
from aircell.status import ExitStatus, ImageInfo, SandboxInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ENGINE_FACTS_SECONDS = 60.0
_POLL = 0.05
_PATIENCE = 60.0
"""Seconds for which wait() bears an engine that does not answer, such as one that is being restarted."""


class DockerBackend(Backend):
    """See :class:`~aircell.backends.base.Backend`; its configuration is :class:`DockerConfig`."""

    name: ClassVar[str] = "docker"

    def __init__(self, config: Mapping[str, object]) -> None:
        try:
            self._config = DockerConfig.model_validate(config)
        except ValidationError as error:
            raise InvalidSpec(f"backends.docker of the configuration is malformed: {error}") from error
        self._client = DockerClient(self._config)
        self._engine: tuple[float, engine.Engine] | None = None

    async def info(self) -> EngineInfo:
        facts = await self._read_engine()
        return EngineInfo("docker", facts.version, facts.api_version, tuple(sorted(facts.handlers)))

    async def close(self) -> None:
        await self._client.close()

    async def check(self, spec: SandboxSpec) -> None:
        engine.check(spec, await self._facts(), self._config.pod_network)
        await self._seccomp(spec)

    # --- Images ---

    async def image(self, reference: str) -> ImageInfo | None:
        image = await self._client.image(translate.tagged(reference))
        return translate.image_info(image, reference) if image is not None else None

    async def images(self) -> list[ImageInfo]:
        return [translate.image_info(image) for image in await self._client.images()]

    async def pull(
        self, reference: str, auth: RegistryAuth | None, progress: Callable[[PullProgress], None]
    ) -> ImageInfo:
        meter = Meter()

        def heard(message: Mapping[str, object]) -> None:
            if so_far := meter.read(message):
                progress(so_far)

        await self._client.pull(str(Reference.parse(reference)), translate.auth(auth), heard)
        return await self._present(reference)

    async def load(self, archive: BinaryIO, reference: str) -> ImageInfo:
        await self._client.load(archive, reference)
        return await self._present(reference)

    async def add_layer(self, base: ImageInfo, layer: Path, reference: str, paths: Mapping[str, str]) -> ImageInfo:
        with tempfile.TemporaryFile(dir=layer.parent) as context:
            await asyncio.to_thread(layers.write_context, context, base.id, layer, paths)
            context.seek(0)
            await self._client.build(context, reference)
        return await self._present(reference)

    async def remove_image(self, reference: str) -> None:
        await self._client.remove_image(translate.tagged(reference))

    async def image_folder(self) -> str:
        return (await self._read_engine()).folder

    # --- The life of a sandbox ---

    async def create(self, plan: SandboxPlan) -> None:
        engine.check(plan.spec, await self._facts(), self._config.pod_network)
        seccomp = await self._seccomp(plan.spec)
        plan = dataclasses.replace(plan, mounts=await asyncio.to_thread(mounts.prepare, plan.mounts, plan.id))
        body = translate.container(
            plan,
            pod_network=self._config.pod_network,
            cgroup_parent=self._config.cgroup_parent,
            seccomp=seccomp,
        )
        await self._client.create(plan.id, body)

    async def start(self, sandbox: str) -> None:
        await self._client.start(sandbox)

    async def wait(self, sandbox: str) -> ExitStatus:
        while True:
            await _patiently(lambda: self._client.exit(sandbox))
            state = (await _patiently(lambda: self._client.inspect(sandbox)))["State"]
            if translate.has_ended(state):
                return translate.exit_status(state)
            await asyncio.sleep(_POLL)  # it was not started yet

    async def log_tail(self, sandbox: str, max_bytes: int = 8192) -> str:
        return translate.tail(await self._client.logs(sandbox, lines=max_bytes), max_bytes)

    async def stop(self, sandbox: str, grace: float) -> None:
        await self._client.stop(sandbox, math.ceil(grace))

    async def remove(self, sandbox: str) -> None:
        end = time.monotonic() + self._config.make_timeout
        while True:
            try:
                return await self._client.remove(sandbox)
            except EngineError:  # Docker removes one container once at a time: another call may be at it
                if time.monotonic() > end or not await self._is_being_removed(sandbox):
                    raise
            await asyncio.sleep(_POLL)

    async def sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        found = []
        for listed in await self._client.containers(labels):
            try:
                found.append(translate.sandbox_info(listed, await self._client.inspect(translate.sandbox(listed))))
            except NotFound:
                logger.debug("container %s was removed since it was listed", listed["Id"])
        return found

    async def foreign_owner(self) -> str | None:
        return None

    # --- Helpers ---

    async def _present(self, reference: str) -> ImageInfo:
        image = await self.image(reference)
        if image is None:
            raise NotFound(
                f"Docker has no image {reference}, though it just took it up.",
                hint="Does an archive call it otherwise? Does something prune images?",
            )
        return image

    async def _facts(self) -> engine.Engine:
        """What the engine can do, asked again after a while: it may have been replaced by another version."""
        if self._engine is not None and time.monotonic() - self._engine[0] < _ENGINE_FACTS_SECONDS:
            return self._engine[1]
        return await self._read_engine()

    async def _read_engine(self) -> engine.Engine:
        facts = await self._client.engine()
        self._engine = time.monotonic(), facts
        return facts

    async def _seccomp(self, spec: SandboxSpec) -> str:
        """The text of the profile that the spec names; Docker wants that instead of its path."""
        path = translate.seccomp_file(spec.security)
        if not path:
            return ""
        try:
            return await asyncio.to_thread(Path(path).read_text)
        except OSError as error:
            raise UnsupportedSpec(
                f"the seccomp profile {path} cannot be read on this node: {error.strerror}.",
                hint="Correct `security.seccomp`, or install the profile.",
            ) from error

    async def _is_being_removed(self, sandbox: str) -> bool:
        try:
            state = (await self._client.inspect(sandbox))["State"]
        except NotFound:
            return True
        return bool(state["Status"] in ("removing", "dead"))


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Bears an engine that is away for a while: a sandbox may be none the worse for it."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return await ask()
        except EngineUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(1.0)
