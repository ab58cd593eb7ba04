"""What aircelld does on request: one asynchronous generator of answers for each operation of ``docs/protocol.md``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from aircell.backends.base import PullProgress
from aircell.daemon.channels import Channels
from aircell.daemon.concurrency import end
from aircell.daemon.config import Config, explain
from aircell.daemon.engines import Engines
from aircell.daemon.image_gc import ImageGc
from aircell.daemon.images import ImageStore
from aircell.daemon.launcher import Launcher
from aircell.daemon.owner import Owner
from aircell.daemon.pool import Pools
from aircell.daemon.reaper import Reaper
from aircell.daemon.record import Sandbox
from aircell.daemon.registry import Registry
from aircell.errors import InvalidSpec, RefusedByPolicy
from aircell.spec import LaunchRequest, Model, SandboxSpec
from aircell.status import State

Answers = AsyncGenerator[Mapping[str, Any], None]
ModelT = TypeVar("ModelT", bound=Model)


@dataclass
class Call:
    """One request as it came."""

    message: Mapping[str, Any]
    fds: list[int]
    """The operation takes out those that it keeps; the server closes the rest."""
    pid: int
    uid: int

    def take(self, model: type[ModelT]) -> ModelT:
        """The request's fields, which are not kept: a call may last as long as the job that it asks for. Raises
        InvalidSpec."""
        message, self.message = self.message, {}
        return parse(model, {name: value for name, value in message.items() if name != "op"})


class _Nothing(Model):
    pass


class _Launch(Model):
    request: dict[str, Any]


class _Ps(Model):
    all: bool = False


class _One(Model):
    sandbox: str


class _Stop(_One):
    grace: float | None = None


class _Images(Model):
    backend: str = "cri"


class _Load(_Images):
    image: str


class _Pull(_Images):
    image: str
    credentials: str | None = None
    pull_policy: Literal["always", "missing", "never"] = "always"


class _Prune(Model):
    dry_run: bool = False


class _PruneImages(_Images, _Prune):
    pass


class Operations:
    """Each public method is an operation."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        images: ImageStore,
        image_gc: ImageGc,
        registry: Registry,
        launcher: Launcher,
        pools: Pools,
        reaper: Reaper,
    ) -> None:
        self._config = config
        self._engines = engines
        self._images = images
        self._image_gc = image_gc
        self._registry = registry
        self._launcher = launcher
        self._pools = pools
        self._reaper = reaper

    def named(self, name: object) -> Callable[[Call], Answers]:
        """The operation of that name. Raises InvalidSpec for one that does not exist."""
        operations: dict[object, Callable[[Call], Answers]] = {
            "hello": self.hello,
            "launch": self.launch,
            "ps": self.ps,
            "inspect": self.inspect,
            "stop": self.stop,
            "logs": self.logs,
            "pull": self.pull,
            "images": self.images,
            "load": self.load,
            "prune": self.prune,
            "pools": self.pools,
            "drain": self.drain,
            "prune_images": self.prune_images,
        }
        if not isinstance(name, str) or name not in operations:
            raise InvalidSpec(f"aircelld knows no operation {name!r}; it knows {', '.join(map(str, operations))}.")
        return operations[name]

    async def hello(self, call: Call) -> Answers:
        call.take(_Nothing)
        yield {
            "ok": True,
            "version": version("aircell"),
            "pid": os.getpid(),
            "node": self._config.node_id(),
            "backends": await self._engines.describe(),
        }

    async def launch(self, call: Call) -> Answers:
        sandbox = self._accept(call)
        yield {"ok": True, "sandbox": sandbox.id}
        async for event in sandbox.follow():
            yield event

    def _accept(self, call: Call) -> Sandbox:
        request = parse(LaunchRequest, call.take(_Launch).request)
        fds, call.fds = call.fds, []
        channels = Channels(fds)
        try:
            return self._launcher.launch(request, channels, Owner.of(call.pid, call.uid))
        except BaseException:
            channels.close()
            raise

    async def ps(self, call: Call) -> Answers:
        sandboxes = self._registry.sandboxes(all=call.take(_Ps).all)
        yield {"ok": True, "sandboxes": [sandbox.summary() for sandbox in sandboxes]}

    async def inspect(self, call: Call) -> Answers:
        yield {"ok": True, "sandbox": self._registry.get(call.take(_One).sandbox).details()}

    async def stop(self, call: Call) -> Answers:
        fields = call.take(_Stop)
        sandbox = self._registry.get(fields.sandbox)
        grace = sandbox.record.spec.stop_grace if fields.grace is None else fields.grace
        await self._launcher.stop(sandbox, grace)
        yield {"ok": True}

    async def logs(self, call: Call) -> Answers:
        sandbox = self._registry.get(call.take(_One).sandbox)
        live = sandbox.state in (State.STARTING, State.RUNNING)
        log = (
            await self._engines.get(sandbox.record.backend).log_tail(sandbox.record.made_as, 2**20)
            if live
            else sandbox.log
        )
        yield {"ok": True, "log": log}

    async def pull(self, call: Call) -> Answers:
        fields = call.take(_Pull)
        backend = self._engines.get(fields.backend)
        self._config.policy.check(SandboxSpec(image=fields.image, pull_policy=fields.pull_policy))
        yield {"ok": True}
        told: asyncio.Queue[PullProgress] = asyncio.Queue()
        pull = asyncio.ensure_future(
            self._images.ensure(backend, fields.image, fields.pull_policy, fields.credentials, told.put_nowait)
        )
        try:
            async for progress in _until(pull, told):
                yield {"event": State.PULLING.value, "done": progress.done, "total": progress.total}
            yield {"image": asdict(pull.result())}
        finally:
            await end(pull)

    async def images(self, call: Call) -> Answers:
        backend = self._engines.get(call.take(_Images).backend)
        yield {"ok": True, "images": [asdict(image) for image in await backend.images()]}

    async def pools(self, call: Call) -> Answers:
        call.take(_Nothing)
        yield {"ok": True, "pools": self._pools.summaries()}

    async def drain(self, call: Call) -> Answers:
        call.take(_Nothing)
        await self._pools.drain()
        yield {"ok": True}

    async def prune_images(self, call: Call) -> Answers:
        fields = call.take(_PruneImages)
        removed = await self._image_gc.prune(self._engines.get(fields.backend), dry_run=fields.dry_run)
        yield {"ok": True, "removed": removed}

    async def load(self, call: Call) -> Answers:
        """For root alone: an archive may give any name to what it holds."""
        fields = call.take(_Load)
        backend = self._engines.get(fields.backend)
        if call.uid != 0:
            raise RefusedByPolicy(
                f"user {call.uid} may not load images: they could go by any name.", hint="Do it as root."
            )
        if len(call.fds) != 1:
            raise InvalidSpec(f"a load needs one descriptor, of the archive, not {len(call.fds)}.")
        with os.fdopen(call.fds.pop(), "rb") as archive:
            yield {"ok": True}
            yield {"image": asdict(await backend.load(archive, fields.image))}

    async def prune(self, call: Call) -> Answers:
        yield {"ok": True, "removed": await self._reaper.sweep(dry_run=call.take(_Prune).dry_run)}


def parse(model: type[ModelT], data: Mapping[str, Any]) -> ModelT:
    """Data from outside as a model. Raises InvalidSpec naming each wrong field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec(f"the request is malformed: {explain(error)}.") from error


async def _until(done: asyncio.Future[Any], queue: asyncio.Queue[PullProgress]) -> AsyncIterator[PullProgress]:
    """What comes through ``queue`` until ``done`` is done."""
    while True:
        item = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait({item, done}, return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                return
            yield item.result()
        finally:
            item.cancel()
