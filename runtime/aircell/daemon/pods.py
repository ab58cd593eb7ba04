"""Pods that are prepared: as much of a sandbox as can be made before its image, mounts and limits are known.

Some are kept for what is in use and has no zygote. A cold start that finds one has that much less to do: it becomes
that sandbox, and is removed with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from aircell.backends.base import LABEL_NODE, LABEL_PREFIX, LABEL_SANDBOX, PodPlan
from aircell.daemon.calm import Calm
from aircell.daemon.concurrency import settle
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.place import OwnSandbox
from aircell.daemon.removals import Removals
from aircell.daemon.shape import Shape
from aircell.errors import AircellError

log = logging.getLogger(__name__)

_ROLE = "pod"
_RETRY = 60.0
"""Seconds after which one that could not be made is tried again."""


@dataclass(frozen=True)
class Pod:
    """One that waits for its container."""

    name: str
    """On the engine, and on the disk once it has a folder."""
    backend: str
    word: str
    """The backend's own for it."""


class Pods:
    """All of the node. Belongs to one event loop."""

    def __init__(self, config: Config, engines: Engines, calm: Calm) -> None:
        self._config = config
        self._engines = engines
        self._calm = calm
        self._removals = Removals()
        self._wanted: dict[str, Shape] = {}
        """A shape for each kind of pod."""
        self._ready: defaultdict[str, deque[Pod]] = defaultdict(deque)
        self._making = ""
        self._rests_until: dict[str, float] = {}
        self._stirred = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        """Whether the pod of that name is being made here, is ready, or is being removed."""
        ready = {pod.name for pods in self._ready.values() for pod in pods}
        return name == self._making or name in ready or name in self._removals

    def ready(self, shape: Shape) -> int:
        """How many wait for a sandbox of this shape, or of another that can have the same."""
        return len(self._ready.get(shape.pod, ()))

    def claim(self, shape: Shape) -> Pod | None:
        """A ready one for a sandbox of that shape, which is the caller's from now on, or None. Never waits."""
        self._stirred.set()
        return self._ready[shape.pod].popleft() if self.ready(shape) else None

    def want(self, shapes: Iterable[Shape]) -> None:
        """From now on some are kept ready for sandboxes of these shapes, and for no others."""
        self._wanted = {shape.pod: shape for shape in shapes}
        for kind in self._ready.keys() - self._wanted.keys():
            for pod in self._ready.pop(kind):
                self._remove(pod.backend, pod.name)
        self._stirred.set()

    async def run(self) -> None:
        """Makes what is wanted, one after another, until it is cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            while (shape := self._emptiest()) is not None:
                await self._calm.wait()
                await self._make(shape)

    async def drain(self) -> None:
        """Removes all that are ready; returns once that is done. One that is being made is removed when it is ready."""
        self.want(())
        await self._removals.finish()

    def _emptiest(self) -> Shape | None:
        now, enough = time.monotonic(), self._config.warm.pods
        lacking = [
            shape
            for kind, shape in self._wanted.items()
            if self.ready(shape) < enough and self._rests_until.get(kind, 0.0) <= now
        ]
        return min(lacking, key=self.ready, default=None)

    async def _make(self, shape: Shape) -> None:
        name = self._making = f"{_ROLE}-{secrets.token_hex(6)}"
        try:
            word = await settle(self._engines.get(shape.backend).prepare(self._plan(name, shape)))
        except AircellError as error:
            log.warning("no pod can be prepared for %s: %s", shape.spec.image, error)
            self._remove(shape.backend, name)
            self._rest(shape, _RETRY)
        except asyncio.CancelledError:
            self._remove(shape.backend, name)
            raise
        else:
            self._keep(shape, Pod(name, shape.backend, word))
        finally:
            self._making = ""

    def _keep(self, shape: Shape, pod: Pod) -> None:
        if not pod.word:
            self._rest(shape, float("inf"))  # there is no such thing on this engine
        elif shape.pod in self._wanted:
            self._ready[shape.pod].append(pod)
        else:
            self._remove(pod.backend, pod.name)

    def _rest(self, shape: Shape, seconds: float) -> None:
        self._rests_until[shape.pod] = time.monotonic() + seconds
        if seconds < float("inf"):
            asyncio.get_running_loop().call_later(seconds, self._stirred.set)

    def _remove(self, backend: str, name: str) -> None:
        self._removals.begin(name, OwnSandbox(name, self._engines.get(backend), self._folder(name)))

    def _folder(self, name: str) -> Folder:
        return Folder.of(self._config.state_dir, name)

    def _plan(self, name: str, shape: Shape) -> PodPlan:
        labels = {LABEL_SANDBOX: name, LABEL_NODE: self._config.node_id(), LABEL_PREFIX + "role": _ROLE}
        return PodPlan(
            id=name,
            spec=shape.spec,
            labels=labels,
            annotations=shape.spec.annotations,
            log_dir=str(self._folder(name).log),
        )
