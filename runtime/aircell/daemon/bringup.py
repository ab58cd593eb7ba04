"""One launch, from the accepted request to the job's hand-over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from aircell.backends.base import Backend, PullProgress, SandboxPlan
from aircell.daemon.channels import Channels
from aircell.daemon.concurrency import end, settle
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.images import ImageStore
from aircell.daemon.record import Sandbox
from aircell.errors import AircellError, StartupFailed
from aircell.policy import Policy
from aircell.spec import RUN_DIR, SCRATCH_DIR, LaunchRequest, Mount
from aircell.status import ExitStatus, ImageInfo, State

log = logging.getLogger(__name__)

T = TypeVar("T")

HAND_OVER_TIMEOUT = 10.0
"""Seconds for an agent that is ready to take its job."""
LAST_WORDS = 0.05
"""Seconds for what an agent wrote to the gate just before it ended."""


@dataclass
class BringUp:
    """Makes one sandbox, and hands the job over to it. ``close`` gives back what it holds, whatever happened."""

    sandbox: Sandbox
    request: LaunchRequest
    mounts: tuple[Mount, ...]
    """The worker's and the spec's, with sources of this node."""
    channels: Channels
    folder: Folder
    backend: Backend
    engines: Engines
    images: ImageStore
    policy: Policy
    gate: Gate | None = field(default=None, init=False)

    async def make_ready(self) -> Gate:
        """From nothing to an agent that waits for its job. Raises AircellError, and OSError of the node's own disk."""
        spec = self.request.spec
        await self.backend.check(spec)
        await self.engines.clear(self.request.backend)
        image = await self.images.ensure(
            self.backend, spec.image, spec.pull_policy, spec.registry_credentials, self._report_pull
        )
        self.gate = gate = await self._in_time(self._start(image), spec.startup_timeout, "was not ready")
        if gate.peer_uid() == 0 and not self.policy.root:
            raise self.policy.root_refused(spec.user)
        return gate

    async def hand_over(self, gate: Gate) -> None:
        """Gives the agent its job. From the first moment of this on, the worker's lifeline is the agent's."""
        # First the record, then the job: should aircelld die in between, the agent gets no job and ends.
        self.sandbox.record = self.sandbox.record.model_copy(update={"handed_over": True})
        self.folder.save(self.sandbox.record)
        handing = gate.hand_over(self.request.job, self.request.spec.stop_grace, self.channels.fds)
        await self._in_time(self._unless_dead(handing), HAND_OVER_TIMEOUT, "did not take its job")

    def close(self) -> None:
        """Gives back descriptors and gate. Idempotent."""
        self.channels.close()
        if self.gate:
            self.gate.close()

    def _report_pull(self, progress: PullProgress) -> None:
        image = self.request.spec.image
        self.sandbox.publish(State.PULLING, image=image, done=progress.done, total=progress.total)

    async def _start(self, image: ImageInfo) -> Gate:
        self.sandbox.record = self.sandbox.record.of_image(image)
        log.info("sandbox %s is made of %s", self.sandbox.id, self.sandbox.record.digest)
        self.sandbox.publish(State.CREATING, image=image.reference, digest=image.digest)
        await settle(self.folder.make(self.sandbox.record, self.request.job))
        self.gate = gate = Gate(self.folder.gate)
        await settle(self.backend.create(self._plan(image)))
        self.sandbox.publish(State.STARTING)
        await settle(self.backend.start(self.sandbox.id))
        await self._unless_dead(gate.ready())
        return gate

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
        try:
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError as error:
            raise StartupFailed(
                f"the sandbox {what} within {seconds:g} s.",
                hint="Its log may say what it waits for; a slow image may need a longer `startup_timeout`.",
                detail=await self._last_words(),
            ) from error

    async def _unless_dead(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of ``work``, which waits for the agent; StartupFailed when its container ends first."""
        answer = asyncio.ensure_future(work)
        death = asyncio.ensure_future(self.backend.wait(self.sandbox.id))
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
            hint=f"Check that the image has `{self.request.spec.python}` and that it works there.",
            detail=await self._last_words(),
        )

    async def _last_words(self) -> str:
        """The end of the container's log; empty when there is none, which must not hide what went wrong."""
        try:
            return await self.backend.log_tail(self.sandbox.id)
        except AircellError as error:
            log.debug("sandbox %s left no log: %s", self.sandbox.id, error)
            return ""

    def _plan(self, image: ImageInfo) -> SandboxPlan:
        spec, record = self.request.spec, self.sandbox.record
        return SandboxPlan(
            id=record.id,
            spec=spec,
            image=image,
            argv=(spec.python, f"{RUN_DIR}/agent.py"),
            env={"HOME": SCRATCH_DIR, **spec.env},
            mounts=(*self.folder.mounts(spec), *self.mounts),
            labels=record.labels,
            annotations=spec.annotations,
            log_dir=str(self.folder.log),
        )
