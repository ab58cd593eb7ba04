"""The residents of the node: one for each shape of which files are parsed in a sandbox that they share.

A resident is a sandbox of our own: recorded, labelled and reaped like any other. Its record says that it has a job as
soon as it is ready, because its forks may: so the next aircelld looks after it until the last has ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from aircell.daemon.bringup import BringUp
from aircell.daemon.concurrency import settle
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.place import OwnSandbox
from aircell.daemon.processes import memory, resident_set
from aircell.daemon.record import Record
from aircell.daemon.resident import Resident, confined_spec
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import why_not
from aircell.daemon.zygotes import free_range, supported, used_ranges
from aircell.errors import AircellError, NotFound

log = logging.getLogger(__name__)

_RETRY = 60.0
"""Seconds after which a resident that could not be made, or that could not fork, is tried again."""
_ENGINE_RETRY = 1.0
_LEAVE = 2.0
"""Seconds for those without jobs to end by themselves."""


@dataclass
class _Member:
    resident: Resident
    memory: int
    """Bytes that it took when it was ready, as its share."""
    size: int
    """Bytes that it had then. Its share is no measure of growth: it falls with each fork."""
    made_at: float


class Residents:
    """Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines, learned: LearnedPreloads) -> None:
        self._config = config
        self._engines = engines
        self._learned = learned
        self._members: dict[str, _Member] = {}
        """Those that serve, by the key of their shape."""
        self._lives: dict[str, asyncio.Task[None]] = {}
        """By name: until nothing is left of it."""
        self._making = ""
        self._rests_until: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is a resident of that name that is looked after here."""
        return name == self._making or name in self._lives

    def ready(self, shape: Shape) -> Resident | None:
        """The one that serves this shape."""
        member = self._members.get(shape.key)
        return member.resident if member else None

    async def get(self, shape: Shape) -> Resident | None:
        """The one for forks of this shape, which is made if need be, and made anew when it is due; None where there can
        be none, or not now.

        Not to be called twice at a time.
        """
        member, shape = self._members.get(shape.key), self._learned.taught(shape)
        rests = self._rests_until.get(shape.key, 0.0) > time.monotonic()
        if member and (rests or not self._is_due(member, shape)):
            return member.resident
        if rests or not shape.shared or not shape.spec.security.read_only_root:
            return None
        try:
            await self._make(shape)
        except (AircellError, OSError) as error:
            log.warning("no resident of %s: %s", shape.spec.image, error)
            if self._learned.blame(shape, error):
                return await self.get(shape)
            self._rests_until[shape.key] = time.monotonic() + _RETRY
        return self.ready(shape)

    def failed(self, shape: Shape, resident: Resident) -> None:
        """A fork of it could not be made. If that was not for its end, this shape does without for a while."""
        if resident is self.ready(shape):
            self.end(shape)
            self._rests_until[shape.key] = time.monotonic() + _RETRY

    def end(self, shape: Shape) -> None:
        """Gives it no more orders: it ends, and its container does after its last fork. Idempotent."""
        member = self._members.pop(shape.key, None)
        if member:
            member.resident.gate.unwatch()
            member.resident.gate.close()

    def memory(self, shape: Shape | None = None) -> int:
        """Bytes that all of them, or that of this shape, took when they were ready."""
        return sum(member.memory for key, member in self._members.items() if shape is None or key == shape.key)

    async def drain(self) -> None:
        """Returns once those are removed that serve nobody any more and have no job. The others are after their last
        job, if need be by the next aircelld."""
        if self._lives:
            await asyncio.wait(self._lives.values(), timeout=_LEAVE)

    def _is_due(self, member: _Member, shape: Shape) -> bool:
        settings = self._config.residents
        if not self._learned.suffices(member.resident.learned, shape):
            return True
        try:
            grown = resident_set(member.resident.gate.peer_pid()) > settings.growth * member.size
        except OSError:  # it has just ended, which its gate will tell
            return True
        return grown or member.resident.made >= settings.files or time.monotonic() - member.made_at > settings.seconds

    async def _make(self, shape: Shape) -> None:
        """Whoever served until now does so until this one is ready."""
        record, own = await self._planned(shape)
        backend, self._making = self._engines.get(shape.backend), record.id
        place = OwnSandbox(record.id, backend, Folder.of(self._config.state_dir, record.id))
        bring_up = BringUp(
            record=record,
            shape=own,
            folder=place.folder,
            backend=backend,
            policy=self._config.policy,
            publish=lambda *_, **__: None,
        )
        try:
            gate = await bring_up.run()
            self._learned.judge(shape, gate.report)
            place.save(record.model_copy(update={"handed_over": True}))
            member = self._member(record, gate, shape)
        except BaseException:
            self._look_after(place, made=False)
            raise
        finally:
            self._making = ""
        self._look_after(place, made=True)
        self.end(shape)
        self._members[shape.key] = member
        gate.watch(lambda: self._lose(shape, member))
        log.info("resident %s of %s is ready", record.id, shape.spec.image)

    async def _planned(self, shape: Shape) -> tuple[Record, Shape]:
        """The record of a new one, and what it is itself: with ids of its own where its forks can have namespaces."""
        ids, own = None, shape
        if self._config.zygotes.enabled and not why_not(shape.spec) and await supported(self._engines, shape):
            ids = free_range(self._config, used_ranges(Path(self._config.state_dir)))
            own = dataclasses.replace(shape, spec=confined_spec(shape.spec))
        record = Record.warm(own, self._config.node_id(), "resident")
        return record.model_copy(update={"ids": ids}), own

    def _member(self, record: Record, gate: Gate, shape: Shape) -> _Member:
        pid = gate.peer_pid()
        resident = Resident(record, gate, shape, self._config.policy)
        return _Member(resident, memory(pid), resident_set(pid), time.monotonic())

    def _lose(self, shape: Shape, member: _Member) -> None:
        log.warning("resident %s ended by itself; its forks go on", member.resident.id)
        self.end(shape)

    def _look_after(self, place: OwnSandbox, *, made: bool) -> None:
        life = asyncio.create_task(self._live(place, made), name=f"life of {place.name}")
        self._lives[place.name] = life
        life.add_done_callback(lambda _: self._lives.pop(place.name))

    async def _live(self, place: OwnSandbox, made: bool) -> None:
        """Until its last process has ended; what is left then is removed. What was not made whole is at once."""
        if made:
            await self._end_of(place)
        try:
            await settle(place.remove())
        except AircellError as error:
            log.error("resident %s is left to the reaper: %s", place.name, error)

    async def _end_of(self, place: OwnSandbox) -> None:
        while True:
            try:
                await place.wait()
                return
            except NotFound:
                return
            except AircellError as error:
                log.warning("resident %s: the engine cannot be asked: %s", place.name, error)
                await asyncio.sleep(_ENGINE_RETRY)
