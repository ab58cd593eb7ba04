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
from dataclasses import dataclass, field
from typing import Any

from aircell.daemon.calm import Calm
from aircell.daemon.config import Config
from aircell.daemon.demand import Demand
from aircell.daemon.engines import Engines
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.pods import Pods
from aircell.daemon.record import Kind
from aircell.daemon.refill import Refill, Warm
from aircell.daemon.removals import Removals
from aircell.daemon.residents import Residents
from aircell.daemon.shape import Shape
from aircell.daemon.zygotes import Zygotes
from aircell.deadlines import within

log = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks for what has become too old."""
_REMEMBERED = 100


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
    kind: Kind | None = None
    """Of the last one."""

    def summary(self, now: float) -> dict[str, Any]:
        """For ``pool ls``."""
        return {
            "shape": self.shape.key[:12],
            "kind": self.kind or "warm",
            "backend": self.shape.backend,
            "image": self.shape.spec.image,
            "ready": len(self.ready),
            "target": self.demand.target(now),
            "hits": self.hits,
            "misses": self.misses,
            "wait_p50": _percentile(self.waits, 50),
            "wait_p95": _percentile(self.waits, 95),
            "memory": self.memory_ready,
        }

    @property
    def memory_ready(self) -> int:
        """Bytes that those take that are ready."""
        return sum(warm.memory for warm in self.ready)


class Pools:
    """All pools of the node. Belongs to one event loop."""

    def __init__(
        self, config: Config, engines: Engines, zygotes: Zygotes, learned: LearnedPreloads, pods: Pods, calm: Calm
    ) -> None:
        self._settings = config.warm
        self._zygotes = zygotes
        self._learned = learned
        self._residents = Residents(config, engines, learned)
        self._removals = Removals()
        self._refill = Refill(config, engines, zygotes, self._residents, learned, self._removals)
        self._pods = pods
        self._calm = calm
        self._pools: dict[str, Pool] = {}
        self._stirred = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        """Whether the sandbox of that name is being made here, is ready, or is being removed, or is a resident."""
        ready = {warm.name for pool in self._pools.values() for warm in pool.ready}
        return any(name in each for each in (ready, self._refill, self._removals, self._residents))

    def images(self) -> set[str]:
        """Ids of the images that pools are made of."""
        return {pool.shape.image.id for pool in self._pools.values()}

    def summaries(self) -> list[dict[str, Any]]:
        """For ``pool ls``, those with most hits first."""
        now = time.monotonic()
        pools = sorted(self._pools.values(), key=lambda pool: -pool.hits)
        return [
            {
                **pool.summary(now),
                "memory": pool.memory_ready + self._residents.memory(pool.shape),
                "stale": len(pool.ready) - self._fresh(pool),
                "pods": self._pods.ready(pool.shape),
                **self._learned.summary(pool.shape),
            }
            for pool in pools
        ]

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
                pool.hits += 1
                return warm
            self._discard(warm)
        pool.misses += 1
        return None

    async def fork(self, shape: Shape) -> Warm | None:
        """One that the resident of this shape makes for the caller, or None where there is none. Raises Refused."""
        resident = self._residents.ready(shape)
        return await self._refill.fork(shape, resident, 0) if resident else None

    def served(self, shape: Shape, seconds: float, *, was_ready: bool) -> None:
        """A sandbox of that shape began its job, so many seconds after it was asked for: there may be more to come."""
        if not self._settings.enabled:
            return
        pool = self._pools.get(shape.key)
        if pool is None:
            now = time.monotonic()
            pool = self._pools[shape.key] = Pool(shape, Demand(self._settings, last=now))
            pool.demand.note(now, pool.refill_seconds)
            log.info("pool %s of %s begins", shape.key[:12], shape.spec.image)
            self._want_pods()
        if was_ready:
            pool.waits.append(seconds)
        self._stirred.set()

    # --- behind the launches ---

    async def run(self) -> None:
        """Refills one sandbox at a time, and ends what is not wanted any more, until it is cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(_TICK, self._stirred.wait())
            self._stirred.clear()
            self._trim()
            await self._zygotes.trim()
            while (pool := self._hungriest()) is not None:
                await asyncio.sleep(pool.demand.head_start(time.monotonic()))
                await self._calm.wait()
                if self._pools.get(pool.shape.key) is pool:  # it may have ended meanwhile
                    await self._refilled(pool)
                self._trim()

    async def drain(self) -> None:
        """Ends every pool, and forgets what was learned; returns once its sandboxes are removed.

        One that is being made is removed when it is ready.
        """
        for pool in list(self._pools.values()):
            self._end(pool)
        self._learned.forget()
        await self._removals.finish()
        await self._residents.drain()
        await self._zygotes.drain()
        await self._pods.drain()

    def _trim(self) -> None:
        now = time.monotonic()
        for pool in list(self._pools.values()):
            while len(pool.ready) > pool.demand.target(now):
                self._discard(pool.ready.popleft())
            if pool.demand.over(now):
                self._end(pool)

    def _hungriest(self) -> Pool | None:
        """Of the pools that want one more and for which there is room, or can be, the emptiest, and of these the one
        that was wanted last.

        What has been learned since does not end those that are ready without it: they go when others are.
        """
        now = time.monotonic()
        hungry = [
            pool
            for pool in self._pools.values()
            if self._fresh(pool) < pool.demand.target(now) and not self._refill.rests(pool.shape)
        ]
        hungry.sort(key=lambda pool: (len(pool.ready), -pool.demand.last))
        return next(filter(self._make_room, hungry), None)

    def _make_room(self, pool: Pool) -> bool:
        """Whether there is room for one more of it in the node's budget. Where there was none, and nothing of it is
        ready, there is now if what was ready in pools that were wanted longer ago could end for it."""
        missing = self._memory() + pool.memory - self._settings.memory
        if missing <= 0 or pool.ready:
            return missing <= 0
        older = [each for each in self._pools.values() if each.ready and each.demand.last < pool.demand.last]
        if sum(each.memory_ready for each in older) < missing:
            return False
        for each in sorted(older, key=lambda each: each.demand.last):
            while each.ready and missing > 0:
                missing -= each.ready[0].memory
                self._discard(each.ready.popleft())
        return True

    def _fresh(self, pool: Pool) -> int:
        """How many are ready that have preloaded all that has been learned."""
        return sum(self._learned.suffices(warm.learned, pool.shape) for warm in pool.ready)

    async def _refilled(self, pool: Pool) -> None:
        began = time.monotonic()
        warm = await self._refill.make(pool.shape, 0 if pool.kind == "warm" else pool.memory)
        if warm:
            pool.refill_seconds, pool.kind, pool.memory = time.monotonic() - began, warm.kind, warm.memory
            self._keep(pool, warm)

    def _keep(self, pool: Pool, warm: Warm) -> None:
        pool.ready.append(warm)
        warm.gate.watch(lambda: self._lose(pool, warm))
        if self._pools.get(pool.shape.key) is not pool:
            self._end(pool)
        elif self._memory() > self._settings.memory:
            log.info(
                "pool %s: another sandbox of %d MiB is over the node's budget", pool.shape.key[:12], warm.memory >> 20
            )
            self._discard(pool.ready.pop())
        self._want_pods()

    def _lose(self, pool: Pool, warm: Warm) -> None:
        """Its agent does not wait any more, though it has got no job."""
        log.warning("warm sandbox %s ended before it was wanted", warm.name)
        pool.ready.remove(warm)
        self._discard(warm)
        self._stirred.set()

    def _memory(self) -> int:
        return (
            self._zygotes.memory()
            + self._residents.memory()
            + sum(warm.memory for pool in self._pools.values() for warm in pool.ready)
        )

    def _drain_other_digests(self, shape: Shape) -> None:
        """The reference means another image now: nothing of the old one is wanted any more."""
        for pool in list(self._pools.values()):
            if _named(pool.shape) == _named(shape) and pool.shape.image.id != shape.image.id:
                self._end(pool)

    def _end(self, pool: Pool) -> None:
        self._pools.pop(pool.shape.key, None)
        self._residents.end(pool.shape)
        log.info("pool %s of %s ends", pool.shape.key[:12], pool.shape.spec.image)
        while pool.ready:
            self._discard(pool.ready.popleft())
        self._want_pods()

    def _discard(self, warm: Warm) -> None:
        warm.gate.unwatch()
        warm.gate.close()
        self._removals.begin(warm.name, warm.place)

    def _want_pods(self) -> None:
        """For the cold starts of what is forked from nothing, as the last refill has shown."""
        alone = "warm" if self._settings.max else None
        self._pods.want(pool.shape for pool in self._pools.values() if pool.kind == alone)


def _percentile(values: deque[float], percent: int) -> float | None:
    """None when there are no values."""
    if len(values) < 2:
        return next(iter(values), None)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _named(shape: Shape) -> tuple[object, ...]:
    """By what its image was asked for."""
    return shape.backend, shape.spec.image, shape.spec.requirements
