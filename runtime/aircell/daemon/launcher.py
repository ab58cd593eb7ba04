"""The life of a sandbox, from the request to its last trace.

``launch`` answers at once; one task per sandbox brings it up, watches it, and removes everything when it has ended.
Until the hand-over whatever goes wrong ends in ``failed``; after it the job is the agent's, and aircelld only watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from aircell.backends.base import Backend, PullProgress
from aircell.daemon.channels import Channels
from aircell.daemon.concurrency import race
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.gate import Gate
from aircell.daemon.images import ImageStore
from aircell.daemon.keeper import Keeper
from aircell.daemon.learned_preloads import LearnedPreloads
from aircell.daemon.maker import Maker
from aircell.daemon.owner import Owner
from aircell.daemon.paths import on_node
from aircell.daemon.pool import Pools
from aircell.daemon.record import Record, Sandbox, Stopped
from aircell.daemon.registry import Registry
from aircell.daemon.requirements import RequirementImages, reference, refuse_by_name
from aircell.daemon.shape import Shape
from aircell.daemon.tracing import Tracer
from aircell.deadlines import within
from aircell.errors import AircellError, DaemonUnavailable, StartupFailed
from aircell.spec import LaunchRequest, Mount
from aircell.status import ExitStatus, State

log = logging.getLogger(__name__)

HAND_OVER_TIMEOUT = 10.0
"""Seconds for an agent that is ready to take its job."""
_SELDOM = ("run", "build")
"""Roles of what is seldom started again: by hand, or once for each image."""


@dataclass
class Launch:
    """An accepted request on its way to a sandbox."""

    sandbox: Sandbox
    request: LaunchRequest
    mounts: tuple[Mount, ...]
    """The worker's and the spec's, with sources of this node."""
    channels: Channels
    backend: Backend
    gate: Gate | None = None
    """Of the sandbox that gets the job, or got it."""
    holds: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    """On images, until there is a sandbox that has them."""

    def report_pull(self, progress: PullProgress) -> None:
        self.sandbox.publish(State.PULLING, image=self.request.spec.image, done=progress.done, total=progress.total)

    def report_build(self, image: str, line: str) -> None:
        self.sandbox.publish(State.BUILDING, image=image, base=self.request.spec.image, line=line)


class Launcher:
    """Makes sandboxes and sees them off."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        images: ImageStore,
        registry: Registry,
        pools: Pools,
        maker: Maker,
        keeper: Keeper,
        learned: LearnedPreloads,
        tracer: Tracer,
    ) -> None:
        self._config = config
        self._engines = engines
        self._images = images
        self._registry = registry
        self._pools = pools
        self._maker = maker
        self._keeper = keeper
        self._learned = learned
        self._tracer = tracer
        self._requirements = RequirementImages(config.policy, Path(config.state_dir), self.launch)

    def launch(self, request: LaunchRequest, channels: Channels, owner: Owner) -> Sandbox:
        """Accepts a request and returns; ``channels`` belong to the sandbox from then on, unless this raises.

        Raises RefusedByPolicy, and InvalidSpec for a backend or a mount source that this node does not have.
        """
        config, policy = self._config, self._config.policy
        backend = self._engines.get(request.backend)
        policy.check(request.spec)
        refuse_by_name(request.spec.image)
        asked = on_node(request.spec.mounts, config.path_map)
        policy.check_mounts(asked)
        vouched = on_node(request.mounts, config.path_map)
        policy.check_worker_mounts(vouched, protected=(config.state_dir, config.run_dir))
        sandbox = Sandbox(Record.of(request, owner, config.node_id()))
        sandbox.publish(State.QUEUED)
        launch = Launch(sandbox, request, (*vouched, *asked), channels, backend)
        self._registry.add(sandbox, self._live(launch))
        log.info("sandbox %s accepted: %s in %s", sandbox.id, sandbox.record.labels, request.spec.image)
        return sandbox

    def adopt(self, record: Record) -> None:
        """Looks after a sandbox that an earlier aircelld handed over."""
        sandbox = Sandbox(record)
        sandbox.publish(State.RUNNING)
        self._registry.add(sandbox, self._adopted(sandbox))
        log.info("sandbox %s adopted", sandbox.id)

    async def stop(self, sandbox: Sandbox, grace: float) -> None:
        """Ends a sandbox in whatever state it is, and returns once nothing of it is left. Idempotent."""
        sandbox.ask_to_stop(ExitStatus(reason="stopped by a request to aircelld before the job began"))
        if sandbox.state is State.RUNNING:
            await self._keeper.stop(sandbox, grace)
        await sandbox.end()

    async def _adopted(self, sandbox: Sandbox) -> None:
        await self._keeper.see_off(sandbox, await self._keeper.watch(sandbox, None))

    async def _live(self, launch: Launch) -> None:
        sandbox, traceparent = launch.sandbox, launch.request.traceparent
        ending: ExitStatus | AircellError
        try:
            shape, gate = await self._begun(launch)
            del launch  # the job is the agent's now, and its code and arguments are large
            with contextlib.closing(gate):
                ending = await self._keeper.watch(sandbox, gate)
                self._learned.learn(shape, gate.imports)
        except Stopped as stopped:
            ending = stopped.exit
        except AircellError as error:
            ending = error
        except asyncio.CancelledError:
            if sandbox.record.handed_over:
                raise  # the job goes on, and the next aircelld adopts it
            ending = DaemonUnavailable("aircelld is shutting down.", hint="It never ran: try it again.")
        except OSError as error:
            ending = AircellError(f"aircelld could not make the sandbox: {error}.", hint="Look at the node's disk.")
        await self._keeper.see_off(sandbox, ending)
        self._tracer.trace(sandbox, traceparent)

    async def _begun(self, launch: Launch) -> tuple[Shape, Gate]:
        """Returns once the job has begun, of which everybody knows then."""
        sandbox = launch.sandbox
        try:
            async with launch.holds:
                shape, gate = await self._begin(launch)
        except BaseException:
            if launch.gate:
                launch.gate.close()
            raise
        finally:
            launch.channels.close()
        record, report = sandbox.record, gate.report
        sandbox.publish(
            State.RUNNING,
            kind=record.kind,
            ready=record.was_ready,
            digest=record.digest,
            times=gate.times,
            preload_errors={**report.preload_errors, **self._learned.left_out(shape)},
        )
        if launch.request.role not in _SELDOM and not report.from_mounts:
            self._pools.served(shape, sandbox.age(), was_ready=record.was_ready)
        return shape, gate

    async def _begin(self, launch: Launch) -> tuple[Shape, Gate]:
        """Finds a sandbox that is ready or makes one, and gives it the job."""
        sandbox, channels = launch.sandbox, launch.channels
        shape = await race(self._shape(launch), channels.interrupted(), sandbox.stopped())
        sandbox.record, sandbox.shape = sandbox.record.of_image(shape.image), shape.key
        log.info("sandbox %s is made of %s", sandbox.id, sandbox.record.digest)
        while warm := self._pools.claim(shape):
            launch.gate = warm.gate
            sandbox.serve_in(warm.name, warm.kind, warm.place)
            try:
                await race(self._hand_over(launch, warm.gate), sandbox.stopped())
                return shape, warm.gate
            except StartupFailed as error:
                log.warning("sandbox %s: %s could not take the job: %s", sandbox.id, warm.name, error)
                warm.gate.close()
                await self._keeper.undo(sandbox)
        launch.gate = gate = await race(self._maker.make(sandbox, shape), channels.interrupted(), sandbox.stopped())
        await race(self._hand_over(launch, gate), sandbox.stopped())
        return shape, gate

    async def _shape(self, launch: Launch) -> Shape:
        """What the request asks for, with the image as it is on the node by then."""
        spec = launch.request.spec
        await launch.backend.check(spec)
        await self._engines.clear(launch.request.backend)
        await launch.holds.enter_async_context(self._images.hold(launch.backend, spec.image))
        image = base = await self._images.ensure(
            launch.backend, spec.image, spec.pull_policy, spec.registry_credentials, launch.report_pull
        )
        if spec.requirements:
            name = reference(image, spec, self._config.policy)
            await launch.holds.enter_async_context(self._images.hold(launch.backend, name))
            image = await self._requirements.ensure(launch.backend, base, spec, launch.report_build)
            self._images.made_here(launch.backend, base, image)
        return Shape.of(launch.request, image, launch.mounts, launch.sandbox.record.owner.uid)

    async def _hand_over(self, launch: Launch, gate: Gate) -> None:
        """Gives the agent its job. From the first moment of this on, the worker's lifeline is the agent's."""
        # First the record, then the job: should aircelld die in between, the agent gets no job and ends.
        sandbox = launch.sandbox
        sandbox.record = sandbox.record.model_copy(update={"handed_over": True})
        self._keeper.place(sandbox).save(sandbox.record)
        handing = gate.hand_over(launch.request.job, launch.request.spec.stop_grace, launch.channels.fds)
        try:
            await within(HAND_OVER_TIMEOUT, handing)
        except asyncio.TimeoutError as error:
            raise StartupFailed(
                f"the sandbox did not take its job within {HAND_OVER_TIMEOUT:g} s.",
                hint="Is the node overloaded, or its agent stopped? Try it again.",
            ) from error
