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
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.processes import memory, resident_set
from aircell.daemon.record import Record
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote, why_not, zygote_spec
from aircell.errors import AircellError, EngineError

log = logging.getLogger(__name__)

_FIRST_RETRY, _LAST_RETRY = 5.0, 600.0
"""Seconds after which a zygote, or a fork, that could not be made is tried again; doubled each time."""
_GROWTH = 2
"""A zygote that takes so many times the memory that it took when it was ready is replaced."""


@dataclass
class _Member:
    zygote: Zygote
    backend: str
    memory: int
    """Bytes that it took when it was ready, as its share."""
    size: int
    """Bytes that it had then. Its share is no measure of growth: it falls with each fork, and is slow to find out."""
    wanted_at: float
    suspect: bool = False
    """The last fork of it could not be made."""


class Zygotes:
    """Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines, learned: LearnedPreloads) -> None:
        self._config = config
        self._engines = engines
        self._learned = learned
        self._members: dict[str, _Member] = {}
        self._ended: dict[str, str] = {}
        """Backend by name of those that are to be removed once their forks have gone."""
        self._removing = asyncio.Lock()
        self._making = ""
        self._held: Counter[str] = Counter()
        """How many forks are being made of each."""
        self._rests: dict[str, tuple[float, float]] = {}
        """By key of a shape: until when it does without, and for how long."""

    def __contains__(self, name: str) -> bool:
        """Whether the zygote of that name is being made here, serves, or waits for the end of its last fork."""
        serving = {member.zygote.id for member in self._members.values()}
        return name == self._making or name in serving or name in self._ended

    async def get(self, shape: Shape) -> Zygote | None:
        """The one for forks of this shape, which is made if need be; None where there can be none, or not now.

        One that has not preloaded what has been learned since is replaced. Not to be called twice at a time.
        """
        shape = self._learned.taught(shape)
        if (zygote := self.ready(shape)) is not None and self._learned.suffices(zygote.learned, shape):
            return zygote
        if not self._config.zygotes.enabled or why_not(shape.spec) or self._rests_now(shape):
            return None
        try:
            return await self._make(shape) if await supported(self._engines, shape) else None
        except (AircellError, OSError) as error:
            log.warning("no zygote of %s: %s", shape.spec.image, error)
            if self._learned.blame(shape, error):
                return await self.get(shape)
            self._rest(shape)
            return None

    def ready(self, shape: Shape) -> Zygote | None:
        """The one for forks of this shape, if there is one and it can."""
        member = self._members.get(shape.family)
        if member is None or self._rests_now(shape):
            return None
        member.wanted_at = time.monotonic()
        return member.zygote

    def failed(self, shape: Shape, zygote: Zygote) -> None:
        """A fork of it could not be made. If that was not for its end, this shape does without for a while; and if no
        other fork is made before the next that cannot be, the zygote is replaced: the engine may have lost its pod."""
        if zygote is self.ready(shape) and zygote.gate.waits():
            self._rest(shape)
            member = self._members[shape.family]
            if member.suspect:
                log.warning("zygote %s ends: no forks can be made of it; those that there are go on", zygote.id)
                self._end(shape.family)
            member.suspect = True

    def _rest(self, shape: Shape) -> None:
        _, last = self._rests.get(shape.key, (0.0, _FIRST_RETRY / 2))
        pause = min(2 * last, _LAST_RETRY)
        self._rests[shape.key] = (time.monotonic() + pause, pause)

    def _rests_now(self, shape: Shape) -> bool:
        return shape.key in self._rests and self._rests[shape.key][0] > time.monotonic()

    @contextlib.contextmanager
    def held(self, zygote: Zygote | None) -> Iterator[None]:
        """While a fork of it is being made, its pod stays, whatever becomes of it."""
        name = zygote.id if zygote else ""
        self._held[name] += 1
        try:
            yield
            for member in self._members.values():
                member.suspect &= member.zygote is not zygote
        finally:
            self._held[name] -= 1

    def memory(self) -> int:
        """Bytes that all of them took when they were ready."""
        return sum(member.memory for member in self._members.values())

    async def trim(self) -> None:
        """Ends those that nobody has wanted for a while, or that have grown, and removes what it can."""
        now = time.monotonic()
        for family, member in list(self._members.items()):
            if now - member.wanted_at > self._config.warm.idle_ttl:
                self._end(family)
            elif _has_grown(member):
                log.warning("zygote %s ends: it has grown; its forks go on", member.zygote.id)
                self._end(family)
        await self._remove_ended()

    async def drain(self) -> None:
        """Ends all; returns once those without forks are removed. The others the next aircelld's reaper removes."""
        for family in list(self._members):
            self._end(family)
        await self._remove_ended()

    async def _make(self, shape: Shape) -> Zygote:
        own = dataclasses.replace(shape, spec=zygote_spec(shape.spec), mounts=(), sources=())
        record = Record.warm(own, self._config.node_id(), "zygote")
        record = record.model_copy(update={"ids": free_range(self._config, used_ranges(Path(self._config.state_dir)))})
        self._making = record.id
        bring_up = BringUp(
            record=record,
            shape=own,
            folder=self._folder(record.id),
            backend=self._engines.get(shape.backend),
            policy=self._config.policy,
            publish=lambda *_, **__: None,
        )
        try:
            gate = await bring_up.run()
            self._learned.judge(shape, gate.report)
            assert record.ids is not None  # noqa: S101 - given above
            zygote = Zygote(record.id, record.ids, gate, shape.learned)
            pid = gate.peer_pid()
            member = _Member(zygote, shape.backend, memory(pid), resident_set(pid), time.monotonic())
        except BaseException:
            self._ended[record.id] = shape.backend
            raise
        finally:
            self._making = ""
        if shape.family in self._members:
            self._end(shape.family)
        self._members[shape.family] = member
        self._rests.pop(shape.key, None)
        gate.watch(lambda: self._lose(shape.family))
        log.info("zygote %s of %s is ready", zygote.id, shape.spec.image)
        return zygote

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


async def supported(engines: Engines, shape: Shape) -> bool:
    """Whether a pod of the shape's handler can have a user namespace of its own."""
    info = await engines.get(shape.backend).info()
    return (shape.spec.runtime_handler or "") in info.user_namespaces


def used_ranges(state: Path) -> Iterable[IdRange]:
    """Those of every sandbox with ids of its own that there is something left of, also of an earlier aircelld's."""
    records = (Folder(path).load() for path in (state / "sandboxes").iterdir())
    return [record.ids for record in records if record is not None and record.ids is not None]


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
        return resident_set(member.zygote.gate.peer_pid()) > _GROWTH * member.size
    except OSError:  # it has just ended, which its gate will tell
        return False
