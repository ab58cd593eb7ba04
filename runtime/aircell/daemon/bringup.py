"""Making one sandbox, from nothing to an agent that waits for its job."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from aircell.backends.base import LABEL_SANDBOX, LABEL_ZYGOTE, Backend, SandboxPlan
from aircell.daemon.concurrency import end, settle, together
from aircell.daemon.folder import SHELL_PROGRAM, Folder
from aircell.daemon.gate import Gate, ListeningGate
from aircell.daemon.processes import Priority, prioritized
from aircell.daemon.record import Record
from aircell.daemon.requirements import with_paths
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote
from aircell.deadlines import within
from aircell.errors import AircellError, StartupFailed
from aircell.policy import Policy
from aircell.spec import RUN_DIR, SCRATCH_DIR
from aircell.status import ExitStatus, State

log = logging.getLogger(__name__)

T = TypeVar("T")

LAST_WORDS = 0.05
"""Seconds for what an agent wrote to the gate just before it ended."""

_PROGRAMS = {"zygote": "zygote.py", "resident": "resident.py"}
"""The first process by role, where it is not the agent."""


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
    beforehand: bool = False
    """Nobody waits for it yet."""
    zygote: Zygote | None = None
    """It becomes a fork of this one."""
    pod: str = ""
    """It is made of what is prepared already, by the backend's word for that."""

    async def run(self) -> Gate:
        """The gate at which its agent waits. Raises AircellError, and OSError of the node's own disk."""
        return await self._in_time(self._start(), self.shape.spec.startup_timeout)

    async def _start(self) -> Gate:
        image = self.shape.image
        self.publish(State.CREATING, image=image.reference, digest=image.digest)
        plan = self._plan()
        pod, _ = await together(self._prepared(plan), self._folder_made())
        gate = ListeningGate(self.folder.gate)
        try:
            await settle(self.backend.create(dataclasses.replace(plan, pod=pod)))
            self.publish(State.STARTING)
            await settle(self.backend.start(self.record.made_as))
            uid = await self._unless_dead(self._agent_ready(gate, plan))
            if uid == 0 and not self.policy.root:
                raise self.policy.root_refused(self.shape.spec.user)
        except BaseException:
            gate.close()
            raise
        return gate

    async def _folder_made(self) -> None:
        await self.folder.make(self.record, self.shape, shell=self.zygote is not None)

    async def _prepared(self, plan: SandboxPlan) -> str:
        return self.pod if self.pod or self.zygote else await self.backend.prepare(plan)

    async def _agent_ready(self, gate: ListeningGate, plan: SandboxPlan) -> int:
        """Its uid: on the node, or as the image has it where the sandbox has ids of its own."""
        if self.zygote:
            return await self.zygote.fill(gate, plan, beforehand=self.beforehand)
        await gate.connected()
        with prioritized(gate.peer_pid(), self.record.made_as, self._priority):
            await gate.ready()
        return gate.peer_uid()

    @property
    def _priority(self) -> Priority:
        """Of its imports. Those of a zygote and of a resident come first: where cold starts take all of the CPU, it is
        they that end this."""
        if self.record.role in _PROGRAMS:
            return "most"
        return "low" if self.beforehand else "ordinary"

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        try:
            return await within(seconds, work)
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
        labels = {**self.record.labels, LABEL_SANDBOX: self.record.made_as}
        program = _PROGRAMS.get(self.record.role, "agent.py")
        return SandboxPlan(
            id=self.record.made_as,
            spec=spec,
            image=self.shape.image,
            argv=(f"{RUN_DIR}/{SHELL_PROGRAM}",) if zygote else (spec.python, f"{RUN_DIR}/{program}"),
            env={"HOME": SCRATCH_DIR, **with_paths(spec)},
            mounts=(*self.folder.mounts(spec), *self.shape.mounts),
            labels={**labels, LABEL_ZYGOTE: zygote.id} if zygote else labels,
            annotations=spec.annotations,
            log_dir=str(self.folder.log),
            ids=zygote.ids if zygote else self.record.ids,
            within=zygote.id if zygote else "",
            bare_proc=self.record.role == "resident" and self.record.ids is not None,
        )
