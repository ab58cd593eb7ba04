"""A sandbox for a job that has found none ready: the cheapest that can be had by now."""

from __future__ import annotations

import logging

from aircell.daemon.bringup import BringUp
from aircell.daemon.calm import Calm
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.gate import Gate
from aircell.daemon.keeper import Keeper
from aircell.daemon.pods import Pods
from aircell.daemon.pool import Pools
from aircell.daemon.record import Sandbox
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote
from aircell.daemon.zygotes import Zygotes
from aircell.errors import AircellError, NotFound, Refused

log = logging.getLogger(__name__)


class Maker:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        keeper: Keeper,
        pools: Pools,
        zygotes: Zygotes,
        pods: Pods,
        calm: Calm,
    ) -> None:
        self._config = config
        self._engines = engines
        self._keeper = keeper
        self._pools = pools
        self._zygotes = zygotes
        self._pods = pods
        self._calm = calm

    async def make(self, sandbox: Sandbox, shape: Shape) -> Gate:
        """Makes it a fork where a resident or a zygote serves, which have imported all; else of a pod, or from nothing.

        Returns the gate at which its agent waits. Raises AircellError and OSError; what there is of the sandbox then is
        the caller's to remove.
        """
        if fork := await self._pools.fork(shape):
            sandbox.serve_in(fork.name, fork.kind, fork.place)
            return fork.gate
        if zygote := self._zygotes.ready(shape):
            sandbox.serve_in(sandbox.id, "zygote")
            try:
                with self._zygotes.held(zygote):
                    return await self._bring_up(sandbox, shape, zygote=zygote)
            except Refused:
                raise
            except AircellError as error:
                log.warning("sandbox %s cannot be a fork of %s: %s", sandbox.id, zygote.id, error)
                self._zygotes.failed(shape, zygote)
                await self._keeper.undo(sandbox)
        if pod := self._pods.claim(shape):
            sandbox.serve_in(pod.name, "cold")
            try:
                return await self._bring_up(sandbox, shape, pod=pod.word)
            except NotFound as error:
                log.warning("sandbox %s cannot be made of %s: %s", sandbox.id, pod.name, error)
                await self._keeper.undo(sandbox)
        return await self._bring_up(sandbox, shape)

    async def _bring_up(self, sandbox: Sandbox, shape: Shape, *, zygote: Zygote | None = None, pod: str = "") -> Gate:
        bring_up = BringUp(
            record=sandbox.record,
            shape=shape,
            folder=self._keeper.folder(sandbox),
            backend=self._engines.get(shape.backend),
            policy=self._config.policy,
            publish=sandbox.publish,
            zygote=zygote,
            pod=pod,
        )
        with self._calm.cold_start():
            return await bring_up.run()
