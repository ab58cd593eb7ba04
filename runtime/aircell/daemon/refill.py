"""Making the next ready sandbox of a shape: as a fork of a resident or a zygote where there can be one, else alone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from aircell.daemon.bringup import BringUp
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.place import OwnSandbox, Place
from aircell.daemon.processes import memory, private_memory
from aircell.daemon.record import Kind, Record
from aircell.daemon.removals import Removals
from aircell.daemon.resident import Resident
from aircell.daemon.residents import Residents
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote
from aircell.daemon.zygotes import Zygotes
from aircell.errors import AircellError, Refused

log = logging.getLogger(__name__)

_RETRY = 60.0
"""Seconds after which it is tried again for a shape of which none could be made."""


@dataclass(frozen=True)
class Warm:
    """A sandbox whose agent waits for its job."""

    name: str
    """On the engine and on the disk."""
    gate: Gate
    memory: int
    """Bytes, when it was ready."""
    kind: Kind
    learned: tuple[str, ...]
    """Modules that it has tried to preload, beside those that were named."""
    place: Place


class Refill:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        zygotes: Zygotes,
        residents: Residents,
        learned: LearnedPreloads,
        removals: Removals,
    ) -> None:
        self._config = config
        self._engines = engines
        self._zygotes = zygotes
        self._residents = residents
        self._learned = learned
        self._removals = removals
        self._making = ""
        self._rests_until: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the sandbox of that name is being made here."""
        return name == self._making

    def rests(self, shape: Shape) -> bool:
        """None could be made of this shape lately, and it is too early to try again."""
        return self._rests_until.get(shape.key, 0.0) > time.monotonic()

    async def make(self, shape: Shape, size: int) -> Warm | None:
        """One of that shape, or None: the reason is in the log.

        A fork takes ``size`` bytes, or what is found out when that is 0, which takes milliseconds. Not to be called
        twice at a time.
        """
        try:
            if resident := await self._residents.get(shape):
                return await self.fork(shape, resident, size)
            return await self._own(shape, await self._zygotes.get(shape), size)
        except Refused as error:
            self._rest(shape, error)
            return None

    async def fork(self, shape: Shape, resident: Resident, size: int) -> Warm | None:
        """A fork of a resident, see :meth:`make`. Raises Refused."""
        try:
            gate, place = await resident.fork()
            size = size or private_memory(gate.peer_pid())
        except Refused:
            raise
        except (AircellError, OSError) as error:
            log.warning("resident %s cannot fork: %s", resident.id, error)
            self._residents.failed(shape, resident)
            return None
        return Warm(resident.id, gate, size, "resident", resident.learned, place)

    async def _own(self, shape: Shape, zygote: Zygote | None, size: int) -> Warm | None:
        shape = self._learned.taught(shape)
        record = Record.warm(shape, self._config.node_id())
        backend, folder = self._engines.get(shape.backend), Folder.of(self._config.state_dir, record.id)
        place = OwnSandbox(record.id, backend, folder)
        bring_up = BringUp(
            record=record,
            shape=shape,
            folder=folder,
            backend=backend,
            policy=self._config.policy,
            publish=lambda *_, **__: None,
            beforehand=True,
            zygote=zygote,
        )
        self._making = record.id
        try:
            with self._zygotes.held(zygote):
                gate = await bring_up.run()
            if not zygote:
                self._learned.judge(shape, gate.report)
            taken = (size or private_memory(gate.peer_pid())) if zygote else memory(gate.peer_pid())
        except BaseException as error:
            self._removals.begin(record.id, place)
            if not isinstance(error, (AircellError, OSError)):
                raise
            self._blame(shape, zygote, error)
            return None
        finally:
            self._making = ""
        learned = zygote.learned if zygote else shape.learned
        return Warm(record.id, gate, taken, "zygote" if zygote else "warm", learned, place)

    def _blame(self, shape: Shape, zygote: Zygote | None, error: Exception) -> None:
        if zygote:
            log.warning("zygote %s cannot be forked: %s", zygote.id, error)
            self._zygotes.failed(shape, zygote)
        elif not self._learned.blame(shape, error):
            self._rest(shape, error)

    def _rest(self, shape: Shape, error: Exception) -> None:
        log.warning("pool %s cannot be refilled: %s", shape.key[:12], error)
        self._rests_until[shape.key] = time.monotonic() + _RETRY
