"""Making one sandbox, from nothing to an agent that waits for its job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from aircell.backends.base import LABEL_ZYGOTE, Backend, SandboxPlan
from aircell.daemon.concurrency import end, settle
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.processes import background
from aircell.daemon.record import Record
from aircell.daemon.requirements import with_paths
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote
from aircell.errors import AircellError, StartupFailed
from aircell.policy import Policy
from aircell.spec import RUN_DIR, SCRATCH_DIR
from aircell.status import ExitStatus, State

log = logging.getLogger(__name__)

T = TypeVar("T")

LAST_WORDS = 0.05
"""Seconds for what an agent wrote to the gate just before it ended."""


@dataclass
class BringUp:
    """One sandbox in the making. What there is of it when :meth:`run` raises is the caller's to remove."""

    record: Record
    """``made_as`` is its name on the engine; ``labels`` are those that the engine gets."""
    shape: Shape
    folder: Folder
    backend: Backend
    policy: Policy
    publish: Callable[..., None]
    """Told each state that it comes to, and facts about it."""
    in_background: bool = False
    """Nobody waits for it."""
    zygote: Zygote | None = None
    """It becomes a fork of this one."""

    async def run(self) -> Gate:
        """The gate at which its agent waits. Raises AircellError, and OSError of the node's own disk."""
        return await self._in_time(self._start(), self.shape.spec.startup_timeout)

    async def _start(self) -> Gate:
        image = self.shape.image
        self.publish(State.CREATING, image=image.reference, digest=image.digest)
        await settle(self.folder.make(self.record, self.shape))
        gate = Gate(self.folder.gate)
        try:
            plan = self._plan()
            await settle(self.backend.create(plan))
            self.publish(State.STARTING)
            await settle(self.backend.start(self.record.made_as))
            uid = await self._unless_dead(self.zygote.fill(gate, plan) if self.zygote else self._agent_ready(gate))
            if uid == 0 and not self.policy.root:
                raise self.policy.root_refused(self.shape.spec.user)
        except BaseException:
            gate.close()
            raise
        return gate

    async def _agent_ready(self, gate: Gate) -> int:
        """Its uid on the node."""
        await gate.connected()
        with background(gate.peer_pid()) if self.in_background else contextlib.nullcontext():
            await gate.ready()
        return gate.peer_uid()

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        try:
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError as error:
            raise StartupFailed(
                f"the sandbox was not ready within {seconds:g} s.",
                hint="Its log may say what it waits for; a slow image may need a longer `startup_timeout`.",
                detail=await self._last_words(),
            ) from error

    async def _unless_dead(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of ``work``, which waits for the agent; StartupFailed when its container ends first."""
        answer = asyncio.ensure_future(work)
        death = asyncio.ensure_future(self.backend.wait(self.record.made_as))
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({answer}, timeout=LAST_WORDS)
            return answer.result() if answer.done() else await self._died(death.result())
        finally:
            await end(answer, death)

    async def _died(self, exit: ExitStatus) -> NoReturn:
        how = f"signal {exit.signal}" if exit.signal is not None else f"code {exit.code}"
        raise StartupFailed(
            f"the sandbox ended with {how} before the job could begin. {exit.reason}".rstrip(),
            hint=f"Check that the image has `{self.shape.spec.python}` and that it works there.",
            detail=await self._last_words(),
        )

    async def _last_words(self) -> str:
        """The end of the container's log; empty when there is none, which must not hide what went wrong."""
        try:
            return await self.backend.log_tail(self.record.made_as)
        except AircellError as error:
            log.debug("sandbox %s left no log: %s", self.record.made_as, error)
            return ""

    def _plan(self) -> SandboxPlan:
        spec, zygote = self.shape.spec, self.zygote
        program = "zygote.py" if self.record.ids else "agent.py"
        return SandboxPlan(
            id=self.record.made_as,
            spec=spec,
            image=self.shape.image,
            argv=(spec.python, "-IS", f"{RUN_DIR}/shell.py") if zygote else (spec.python, f"{RUN_DIR}/{program}"),
            env={"HOME": SCRATCH_DIR, **with_paths(spec)},
            mounts=(*self.folder.mounts(spec), *self.shape.mounts),
            labels={**self.record.labels, LABEL_ZYGOTE: zygote.id} if zygote else self.record.labels,
            annotations=spec.annotations,
            log_dir=str(self.folder.log),
            ids=zygote.ids if zygote else self.record.ids,
            within=zygote.id if zygote else "",
        )
