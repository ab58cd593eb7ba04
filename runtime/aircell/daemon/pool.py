"""Warm sandboxes: made before they are asked for, used for one job, never used again.

A pool holds those of one shape. It comes into being when a sandbox of that shape has begun its first job, keeps as many
ready as were lately wanted at a time, and ends when nobody has wanted one for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aircell.daemon.bringup import BringUp
from aircell.daemon.concurrency import settle
from aircell.daemon.config import Config
from aircell.daemon.demand import Demand
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.processes import memory
from aircell.daemon.record import Kind, Record
from aircell.daemon.shape import Shape
from aircell.daemon.zygotes import Zygotes
from aircell.errors import AircellError

log = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks for what has become too old."""
_PATIENCE = 5.0
"""Seconds for which a refill waits for cold starts. When they never end, more warm sandboxes are the cure."""
_RETRY = 60.0
"""Seconds after which a pool that could not be refilled is tried again."""
_REMEMBERED = 100


@dataclass(frozen=True)
class Warm:
    """A sandbox whose agent waits for its job."""

    name: str
    """On the engine and on the disk."""
    gate: Gate
    memory: int
    """Bytes, when it was ready."""
    kind: Kind


@dataclass
class Pool:
    """What is ready of one shape, and what became of it."""

    shape: Shape
    demand: Demand
    ready: deque[Warm] = field(default_factory=deque)
    hits: int = 0
    misses: int = 0
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Seconds from the request to the hand-over, of the last hits."""
    refill_seconds: float = 0.0
    """How long making the last one took."""
    memory: int = 0
    """Bytes that the last one took."""
    kind: Kind = "warm"
    """Of the last one."""
    rests_until: float = 0.0

    def summary(self, now: float) -> dict[str, Any]:
        """For ``pool ls``."""
        return {
            "shape": self.shape.key[:12],
            "kind": self.kind,
            "backend": self.shape.backend,
            "image": self.shape.spec.image,
            "ready": len(self.ready),
            "target": self.demand.target(now),
            "hits": self.hits,
            "misses": self.misses,
            "wait_p50": _percentile(self.waits, 50),
            "wait_p95": _percentile(self.waits, 95),
            "memory": sum(warm.memory for warm in self.ready),
        }


class Pools:
    """All pools of the node. Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines, zygotes: Zygotes) -> None:
        self._config = config
        self._settings = config.warm
        self._engines = engines
        self._zygotes = zygotes
        self._pools: dict[str, Pool] = {}
        self._names: set[str] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._cold_starts = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._stirred = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        """Whether the sandbox of that name is being made here, is ready, or is being removed."""
        return name in self._names

    def images(self) -> set[str]:
        """Ids of the images that pools are made of."""
        return {pool.shape.image.id for pool in self._pools.values()}

    def summaries(self) -> list[dict[str, Any]]:
        """For ``pool ls``, those with most hits first."""
        now = time.monotonic()
        return [pool.summary(now) for pool in sorted(self._pools.values(), key=lambda pool: -pool.hits)]

    # --- for a launch; nothing here waits, so that no two launches can get the same sandbox ---

    def claim(self, shape: Shape) -> Warm | None:
        """A ready sandbox of that shape, which is the caller's from now on, or None."""
        self._drain_other_digests(shape)
        pool = self._pools.get(shape.key)
        if pool is None:
            return None
        pool.demand.note(time.monotonic(), pool.refill_seconds)
        self._stirred.set()
        while pool.ready:
            warm = pool.ready.popleft()
            warm.gate.unwatch()
            if warm.gate.waits():
                self._names.discard(warm.name)
                pool.hits += 1
                return warm
            self._discard(pool.shape.backend, warm)
        pool.misses += 1
        return None

    def served(self, shape: Shape, kind: Kind, seconds: float) -> None:
        """A sandbox of that shape began its job, so many seconds after it was asked for: there may be more to come."""
        if not self._settings.enabled:
            return
        pool = self._pools.get(shape.key)
        if pool is None:
            now = time.monotonic()
            pool = self._pools[shape.key] = Pool(shape, Demand(self._settings, last=now))
            pool.demand.note(now, pool.refill_seconds)
            log.info("pool %s of %s begins", shape.key[:12], shape.spec.image)
        if kind != "cold":
            pool.waits.append(seconds)
        self._stirred.set()

    @contextlib.contextmanager
    def cold_start(self) -> Iterator[None]:
        """While a job waits for a sandbox to be made, no refill begins."""
        self._cold_starts += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._cold_starts -= 1
            if not self._cold_starts:
                self._calm.set()

    # --- behind the launches ---

    async def run(self) -> None:
        """Refills one sandbox at a time, and ends what is not wanted any more, until it is cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), _TICK)
            self._stirred.clear()
            self._trim()
            await self._zygotes.trim()
            while (pool := self._hungriest()) is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._calm.wait(), _PATIENCE)
                await self._refill(pool)
                self._trim()

    async def drain(self) -> None:
        """Ends every pool; returns once its sandboxes are removed. One that is being made is, when it is ready."""
        for pool in list(self._pools.values()):
            self._end(pool)
        await asyncio.gather(*self._removals)
        await self._zygotes.drain()

    def _trim(self) -> None:
        now = time.monotonic()
        for pool in list(self._pools.values()):
            while len(pool.ready) > pool.demand.target(now):
                self._discard(pool.shape.backend, pool.ready.popleft())
            if pool.demand.over(now):
                self._end(pool)

    def _hungriest(self) -> Pool | None:
        """Of the pools that may have one more, the emptiest, and of these the one that was wanted last."""
        now = time.monotonic()
        room = self._settings.memory - self._memory()
        hungry = [
            pool
            for pool in self._pools.values()
            if len(pool.ready) < pool.demand.target(now) and pool.rests_until <= now and pool.memory <= room
        ]
        return min(hungry, key=lambda pool: (len(pool.ready), -pool.demand.last), default=None)

    async def _refill(self, pool: Pool) -> None:
        shape, began = pool.shape, time.monotonic()
        record = Record.warm(shape, self._config.node_id())
        self._names.add(record.id)
        zygote = await self._zygotes.get(shape)
        bring_up = BringUp(
            record=record,
            shape=shape,
            folder=Folder.of(self._config.state_dir, record.id),
            backend=self._engines.get(shape.backend),
            policy=self._config.policy,
            publish=lambda *_, **__: None,
            in_background=True,
            zygote=zygote,
        )
        try:
            with self._zygotes.held(zygote):
                gate = await bring_up.run()
            pool.memory = memory(gate.peer_pid())
        except (AircellError, OSError) as error:
            log.warning("pool %s cannot be refilled: %s", shape.key[:12], error)
            if zygote:
                self._zygotes.failed(shape, zygote)
            else:
                pool.rests_until = time.monotonic() + _RETRY
            self._remove_later(shape.backend, record.id)
        except asyncio.CancelledError:
            self._remove_later(shape.backend, record.id)
            raise
        else:
            pool.refill_seconds = time.monotonic() - began
            pool.kind = "zygote" if zygote else "warm"
            self._keep(pool, Warm(record.id, gate, pool.memory, pool.kind))

    def _keep(self, pool: Pool, warm: Warm) -> None:
        pool.ready.append(warm)
        warm.gate.watch(lambda: self._lose(pool, warm))
        if self._pools.get(pool.shape.key) is not pool:
            self._end(pool)
        elif self._memory() > self._settings.memory:
            log.info(
                "pool %s: another sandbox of %d MiB is over the node's budget", pool.shape.key[:12], warm.memory >> 20
            )
            self._discard(pool.shape.backend, pool.ready.pop())

    def _lose(self, pool: Pool, warm: Warm) -> None:
        """Its agent does not wait any more, though it has got no job."""
        log.warning("warm sandbox %s ended before it was wanted", warm.name)
        pool.ready.remove(warm)
        self._discard(pool.shape.backend, warm)
        self._stirred.set()

    def _memory(self) -> int:
        return self._zygotes.memory() + sum(warm.memory for pool in self._pools.values() for warm in pool.ready)

    def _drain_other_digests(self, shape: Shape) -> None:
        """The reference means another image now: nothing of the old one is wanted any more."""
        for pool in list(self._pools.values()):
            if _named(pool.shape) == _named(shape) and pool.shape.image.id != shape.image.id:
                self._end(pool)

    def _end(self, pool: Pool) -> None:
        self._pools.pop(pool.shape.key, None)
        log.info("pool %s of %s ends", pool.shape.key[:12], pool.shape.spec.image)
        while pool.ready:
            self._discard(pool.shape.backend, pool.ready.popleft())

    def _discard(self, backend: str, warm: Warm) -> None:
        warm.gate.unwatch()
        warm.gate.close()
        self._remove_later(backend, warm.name)

    def _remove_later(self, backend: str, name: str) -> None:
        task = asyncio.create_task(self._remove(backend, name), name=f"removal of {name}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _remove(self, backend: str, name: str) -> None:
        try:
            await settle(self._engines.get(backend).remove(name))
            await Folder.of(self._config.state_dir, name).remove()
        except AircellError as error:
            log.error("warm sandbox %s is left to the reaper: %s", name, error)
        finally:
            self._names.discard(name)


def _percentile(values: deque[float], percent: int) -> float | None:
    """None when there are no values."""
    if len(values) < 2:
        return next(iter(values), None)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _named(shape: Shape) -> tuple[object, ...]:
    """By what its image was asked for."""
    return shape.backend, shape.spec.image, shape.spec.requirements
