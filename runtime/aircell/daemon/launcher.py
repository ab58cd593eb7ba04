"""The life of a sandbox, from the request to its last trace.

``launch`` answers at once; one task per sandbox brings it up, watches it, and removes everything when it has ended.
Until the hand-over whatever goes wrong ends in ``failed``; after it the job is the agent's, and aircelld only watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

from aircell.backends.base import Backend, PullProgress
from aircell.daemon.bringup import LAST_WORDS, BringUp
from aircell.daemon.channels import Channels
from aircell.daemon.concurrency import end, race, settle
from aircell.daemon.config import Config
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.gate import Gate
from aircell.daemon.images import ImageStore
from aircell.daemon.owner import Owner
from aircell.daemon.paths import on_node
from aircell.daemon.pool import Pools
from aircell.daemon.record import Record, Sandbox, Stopped
from aircell.daemon.registry import Registry
from aircell.daemon.requirements import RequirementImages, reference, refuse_by_name
from aircell.daemon.shape import Shape
from aircell.errors import AircellError, DaemonUnavailable, NotFound, StartupFailed
from aircell.spec import LaunchRequest, Mount
from aircell.status import ExitStatus, State

log = logging.getLogger(__name__)

OWNER_GRACE = 5.0
"""Seconds beyond ``stop_grace`` in which an agent must have ended the job of a worker that is gone."""
HAND_OVER_TIMEOUT = 10.0
"""Seconds for an agent that is ready to take its job."""
_SELDOM = ("run", "build")
"""Roles of what is seldom started again: by hand, or once for each image."""
_REMOVALS = 3
"""How often a removal is tried, before it is the reaper's."""
RETRY = 1.0
"""Seconds between two questions to an engine that does not answer."""


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

    def close(self) -> None:
        """Gives back descriptors and gate. Idempotent."""
        self.channels.close()
        if self.gate:
            self.gate.close()


class Launcher:
    """Makes sandboxes and sees them off."""

    def __init__(self, config: Config, engines: Engines, images: ImageStore, registry: Registry, pools: Pools) -> None:
        self._config = config
        self._engines = engines
        self._images = images
        self._registry = registry
        self._pools = pools
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
            await self._stop(sandbox, grace)
        await sandbox.end()

    def _folder(self, name: str) -> Folder:
        return Folder.of(self._config.state_dir, name)

    async def _live(self, launch: Launch) -> None:
        sandbox = launch.sandbox
        ending: ExitStatus | AircellError
        try:
            async with launch.holds:
                shape, gate = await self._begin(launch)
            launch.channels.close()
            kind, report = sandbox.record.kind, gate.report
            sandbox.publish(
                State.RUNNING, kind=kind, digest=sandbox.record.digest, preload_errors=report.preload_errors
            )
            if launch.request.role not in _SELDOM and not report.from_mounts:
                self._pools.served(shape, kind, sandbox.age())
            ending = await self._watch(sandbox, gate)
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
        finally:
            launch.close()
        await self._see_off(sandbox, ending)

    async def _begin(self, launch: Launch) -> tuple[Shape, Gate]:
        """Finds a sandbox that is ready or makes one, and gives it the job."""
        sandbox, channels = launch.sandbox, launch.channels
        shape = await race(self._shape(launch), channels.interrupted(), sandbox.stopped())
        sandbox.record = sandbox.record.of_image(shape.image)
        log.info("sandbox %s is made of %s", sandbox.id, sandbox.record.digest)
        while warm := self._pools.claim(shape):
            launch.gate = warm.gate
            sandbox.record = sandbox.record.served_by(warm.name, warm.kind)
            try:
                await race(self._hand_over(launch, warm.gate), sandbox.stopped())
                return shape, warm.gate
            except StartupFailed as error:
                log.warning("sandbox %s: %s could not take the job: %s", sandbox.id, warm.name, error)
                await self._undo(sandbox, warm.gate)
        launch.gate = gate = await race(self._make(launch, shape), channels.interrupted(), sandbox.stopped())
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

    async def _make(self, launch: Launch, shape: Shape) -> Gate:
        sandbox = launch.sandbox
        bring_up = BringUp(
            record=sandbox.record,
            shape=shape,
            folder=self._folder(sandbox.id),
            backend=launch.backend,
            policy=self._config.policy,
            publish=sandbox.publish,
        )
        with self._pools.cold_start():
            return await bring_up.run()

    async def _hand_over(self, launch: Launch, gate: Gate) -> None:
        """Gives the agent its job. From the first moment of this on, the worker's lifeline is the agent's."""
        # First the record, then the job: should aircelld die in between, the agent gets no job and ends.
        sandbox = launch.sandbox
        sandbox.record = sandbox.record.model_copy(update={"handed_over": True})
        self._folder(sandbox.record.made_as).save(sandbox.record)
        handing = gate.hand_over(launch.request.job, launch.request.spec.stop_grace, launch.channels.fds)
        try:
            await asyncio.wait_for(handing, HAND_OVER_TIMEOUT)
        except asyncio.TimeoutError as error:
            raise StartupFailed(
                f"the sandbox did not take its job within {HAND_OVER_TIMEOUT:g} s.",
                hint="Is the node overloaded, or its agent stopped? Try it again.",
            ) from error

    async def _undo(self, sandbox: Sandbox, gate: Gate) -> None:
        """Removes the sandbox that did not take the job. After that it certainly never will, and another can."""
        gate.close()
        await self._remove(sandbox)
        own = sandbox.record.served_by(sandbox.id, "cold")
        sandbox.record = own.model_copy(update={"handed_over": False})

    async def _adopted(self, sandbox: Sandbox) -> None:
        await self._see_off(sandbox, await self._watch(sandbox, None))

    async def _watch(self, sandbox: Sandbox, gate: Gate | None) -> ExitStatus:
        """How the job ended: by its agent's report if there is one, with what the engine saw of it."""
        guard = asyncio.ensure_future(self._stop_when_orphaned(sandbox))
        report = asyncio.ensure_future(gate.exit()) if gate else None
        try:
            seen = await self._engine_exit(sandbox)
            if report is None:
                return seen
            await asyncio.wait({report}, timeout=LAST_WORDS)
            if not report.done():
                return dataclasses.replace(seen, reason=seen.reason or "The agent was ended from outside the sandbox.")
            return dataclasses.replace(report.result(), oom_killed=report.result().oom_killed or seen.oom_killed)
        finally:
            await end(guard, *([report] if report else []))

    async def _engine_exit(self, sandbox: Sandbox) -> ExitStatus:
        backend = self._engines.get(sandbox.record.backend)
        while True:
            try:
                return await backend.wait(sandbox.record.made_as)
            except NotFound:
                return ExitStatus(reason="The sandbox was removed from the engine by somebody else.")
            except AircellError as error:
                log.warning("sandbox %s: the engine cannot be asked: %s", sandbox.id, error)
                await asyncio.sleep(RETRY)

    async def _stop_when_orphaned(self, sandbox: Sandbox) -> None:
        """The last net under an agent that did not end with its worker."""
        record = sandbox.record
        await record.owner.gone()
        await asyncio.sleep(record.spec.stop_grace + OWNER_GRACE)
        log.warning("sandbox %s outlived its worker (pid %d); stopping it", record.id, record.owner.pid)
        try:
            await self._stop(sandbox, grace=0)
        except AircellError as error:
            log.error("sandbox %s could not be stopped: %s", record.id, error)

    async def _stop(self, sandbox: Sandbox, grace: float) -> None:
        async with sandbox.changing:
            await settle(self._engines.get(sandbox.record.backend).stop(sandbox.record.made_as, grace))

    async def _remove(self, sandbox: Sandbox) -> None:
        """Idempotent. Raises AircellError when something of it may be left."""
        name = sandbox.record.made_as
        async with sandbox.changing:
            await settle(self._engines.get(sandbox.record.backend).remove(name))
        await self._folder(name).remove()

    async def _remove_persistently(self, sandbox: Sandbox) -> None:
        """An engine that is busy with the end of a container may refuse for a moment."""
        for _ in range(_REMOVALS):
            try:
                return await self._remove(sandbox)
            except AircellError as error:
                log.warning("sandbox %s could not be removed: %s", sandbox.id, error)
                await asyncio.sleep(RETRY)
        return log.error("sandbox %s is left to the reaper", sandbox.id)

    async def _see_off(self, sandbox: Sandbox, ending: ExitStatus | AircellError) -> None:
        """Removes all that there is of it, then tells how it ended. What cannot be removed now the reaper removes."""
        backend = self._engines.get(sandbox.record.backend)
        try:
            sandbox.log = await backend.log_tail(sandbox.record.made_as)
        except AircellError as error:
            log.debug("sandbox %s left no log: %s", sandbox.id, error)
        await self._remove_persistently(sandbox)
        if isinstance(ending, AircellError):
            sandbox.failed(ending)
            log.warning("sandbox %s failed: %s", sandbox.id, ending)
        else:
            sandbox.exited(ending)
            log.info("sandbox %s exited: %s", sandbox.id, ending)
