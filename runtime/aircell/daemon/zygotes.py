"""The zygotes of the node: one for each family of shapes that pools are made of, where engine and kernel can.

A zygote is a sandbox of our own: recorded, labelled and reaped like any other. It ends when nobody has wanted a fork
for a while; its pod is removed when its last fork has gone, which may be after aircelld itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aircell.backends.base import LABEL_ZYGOTE, IdRange
from aircell.daemon.bringup import BringUp
from aircell.daemon.concurrency import settle
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.processes import memory
from aircell.daemon.record import Record
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote, why_not, zygote_spec
from aircell.errors import AircellError, EngineError

log = logging.getLogger(__name__)

_RETRY = 600.0
"""Seconds after which a zygote that could not be made is tried again."""
_GROWTH = 2
"""A zygote that takes so many times the memory that it took when it was ready is replaced."""


@dataclass
class _Member:
    zygote: Zygote
    backend: str
    memory: int
    wanted_at: float


class Zygotes:
    """Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines) -> None:
        self._config = config
        self._engines = engines
        self._members: dict[str, _Member] = {}
        self._ended: dict[str, str] = {}
        """Backend by name of those that are to be removed once their forks have gone."""
        self._removing = asyncio.Lock()
        self._making = ""
        self._held: Counter[str] = Counter()
        """How many forks are being made of each."""
        self._rests_until: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the zygote of that name is being made here, serves, or waits for the end of its last fork."""
        serving = {member.zygote.id for member in self._members.values()}
        return name == self._making or name in serving or name in self._ended

    async def get(self, shape: Shape) -> Zygote | None:
        """The one for forks of this shape, which is made if need be; None where there can be none, or not now.

        Not to be called twice at a time.
        """
        if (zygote := self._ready(shape)) is not None:
            return zygote
        if not self._config.zygotes.enabled or why_not(shape.spec) or self._rests(shape):
            return None
        try:
            return await self._make(shape) if await self._supported(shape) else None
        except (AircellError, OSError) as error:
            log.warning("no zygote of %s: %s", shape.spec.image, error)
            self._rests_until[shape.key] = time.monotonic() + _RETRY
            return None

    def failed(self, shape: Shape, zygote: Zygote) -> None:
        """A fork of it could not be made. If that was not for its end, this shape does without for a while."""
        if zygote is self._ready(shape):
            self._rests_until[shape.key] = time.monotonic() + _RETRY

    def _rests(self, shape: Shape) -> bool:
        return self._rests_until.get(shape.key, 0.0) > time.monotonic()

    def _ready(self, shape: Shape) -> Zygote | None:
        """The one for forks of this shape, if there is one and it can."""
        member = self._members.get(shape.family)
        if member is None or self._rests(shape):
            return None
        member.wanted_at = time.monotonic()
        return member.zygote

    @contextlib.contextmanager
    def held(self, zygote: Zygote | None) -> Iterator[None]:
        """While a fork of it is being made, its pod stays, whatever becomes of it."""
        name = zygote.id if zygote else ""
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1

    def memory(self) -> int:
        """Bytes that all of them took when they were ready."""
        return sum(member.memory for member in self._members.values())

    async def trim(self) -> None:
        """Ends those that nobody has wanted for a while, or that have grown, and removes what it can."""
        now = time.monotonic()
        for family, member in list(self._members.items()):
            if now - member.wanted_at > self._config.warm.idle_ttl or _has_grown(member):
                self._end(family)
        await self._remove_ended()

    async def drain(self) -> None:
        """Ends all; returns once those without forks are removed. The others the next aircelld's reaper removes."""
        for family in list(self._members):
            self._end(family)
        await self._remove_ended()

    async def _supported(self, shape: Shape) -> bool:
        """Whether a pod of the shape's handler can have a user namespace of its own."""
        info = await self._engines.get(shape.backend).info()
        return (shape.spec.runtime_handler or "") in info.user_namespaces

    async def _make(self, shape: Shape) -> Zygote:
        own = dataclasses.replace(shape, spec=zygote_spec(shape.spec), mounts=(), sources=())
        record = Record.warm(own, self._config.node_id(), "zygote")
        record = record.model_copy(update={"ids": free_range(self._config, self._used())})
        self._making = record.id
        bring_up = BringUp(
            record=record,
            shape=own,
            folder=self._folder(record.id),
            backend=self._engines.get(shape.backend),
            policy=self._config.policy,
            publish=lambda *_, **__: None,
            in_background=True,
        )
        try:
            gate = await bring_up.run()
            assert record.ids is not None  # noqa: S101 - given above
            zygote = Zygote(record.id, record.ids, gate)
            member = _Member(zygote, shape.backend, memory(gate.peer_pid()), time.monotonic())
        except BaseException:
            self._ended[record.id] = shape.backend
            raise
        finally:
            self._making = ""
        self._members[shape.family] = member
        gate.watch(lambda: self._lose(shape.family))
        log.info("zygote %s of %s is ready", zygote.id, shape.spec.image)
        return zygote

    def _used(self) -> Iterable[IdRange]:
        """Ranges of every zygote that there is something left of, also of an earlier aircelld's."""
        records = (self._folder(path.name).load() for path in (Path(self._config.state_dir) / "sandboxes").iterdir())
        return [record.ids for record in records if record is not None and record.ids is not None]

    def _folder(self, name: str) -> Folder:
        return Folder.of(self._config.state_dir, name)

    def _lose(self, family: str) -> None:
        log.warning("zygote %s ended by itself; its forks go on", self._members[family].zygote.id)
        self._end(family)

    def _end(self, family: str) -> None:
        """Gives it no more orders: it ends, and what is left of it keeps its forks."""
        member = self._members.pop(family)
        member.zygote.gate.unwatch()
        member.zygote.gate.close()
        self._ended[member.zygote.id] = member.backend

    async def _remove_ended(self) -> None:
        """Those without forks."""
        async with self._removing:
            for zygote, name in list(self._ended.items()):
                backend = self._engines.get(name)
                try:
                    if not self._held[zygote] and not await backend.sandboxes({LABEL_ZYGOTE: zygote}):
                        await settle(backend.remove(zygote))
                        await self._folder(zygote).remove()
                        del self._ended[zygote]
                except AircellError as error:
                    log.warning("zygote %s cannot be removed yet: %s", zygote, error)


def free_range(config: Config, used: Iterable[IdRange]) -> IdRange:
    """The first range of ids that none of ``used`` overlaps. Raises EngineError when there is none."""
    settings, taken = config.zygotes, list(used)
    for number in range(settings.max):
        candidate = IdRange(settings.first_id + number * IdRange.length)
        if not any(
            candidate.start < each.start + each.length and each.start < candidate.start + candidate.length
            for each in taken
        ):
            return candidate
    raise EngineError(
        f"all {settings.max} ranges of user ids for zygotes are in use.",
        hint="Raise `zygotes.max`, or see with `aircell ps` which tasks keep old ones.",
    )


def _has_grown(member: _Member) -> bool:
    try:
        return memory(member.zygote.gate.peer_pid()) > _GROWTH * member.memory
    except (OSError, StopIteration):  # it has just ended, which its gate will tell
        return False
