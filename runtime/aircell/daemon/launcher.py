"""The life of a sandbox, from the request to its last trace.

``launch`` answers at once; one task per sandbox brings it up, watches it, and removes everything when it has ended.
Until the hand-over whatever goes wrong ends in ``failed``; after it the job is the agent's, and aircelld only watches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

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
from aircell.daemon.record import Record, Sandbox, Stopped
from aircell.daemon.registry import Registry
from aircell.errors import AircellError, DaemonUnavailable, NotFound
from aircell.spec import LaunchRequest
from aircell.status import ExitStatus, State

log = logging.getLogger(__name__)

OWNER_GRACE = 5.0
"""Seconds beyond ``stop_grace`` in which an agent must have ended the job of a worker that is gone."""
RETRY = 1.0
"""Seconds between two questions to an engine that does not answer."""


class Launcher:
    """Makes sandboxes and sees them off."""

    def __init__(self, config: Config, engines: Engines, images: ImageStore, registry: Registry) -> None:
        self._config = config
        self._engines = engines
        self._images = images
        self._registry = registry

    def launch(self, request: LaunchRequest, channels: Channels, owner: Owner) -> Sandbox:
        """Accepts a request and returns; ``channels`` belong to the sandbox from then on, unless this raises.

        Raises RefusedByPolicy, and InvalidSpec for a backend or a mount source that this node does not have.
        """
        config, policy = self._config, self._config.policy
        backend = self._engines.get(request.backend)
        policy.check(request.spec)
        asked = on_node(request.spec.mounts, config.path_map)
        policy.check_mounts(asked)
        vouched = on_node(request.mounts, config.path_map)
        policy.check_worker_mounts(vouched, protected=(config.state_dir, config.run_dir))
        sandbox = Sandbox(Record.of(request, owner, config.node_id()))
        sandbox.publish(State.QUEUED)
        launch = BringUp(
            sandbox=sandbox,
            request=request,
            mounts=(*vouched, *asked),
            channels=channels,
            folder=self.folder(sandbox.id),
            backend=backend,
            engines=self._engines,
            images=self._images,
            policy=policy,
        )
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

    def folder(self, sandbox: str) -> Folder:
        """The sandbox's folder, which may not exist."""
        return Folder(Path(self._config.state_dir) / "sandboxes" / sandbox)

    async def _live(self, launch: BringUp) -> None:
        sandbox = launch.sandbox
        ending: ExitStatus | AircellError
        try:
            gate = await race(launch.make_ready(), launch.channels.interrupted(), sandbox.stopped())
            await race(launch.hand_over(gate), sandbox.stopped())
            launch.channels.close()
            sandbox.publish(State.RUNNING)
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
                return await backend.wait(sandbox.id)
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
            await settle(self._engines.get(sandbox.record.backend).stop(sandbox.id, grace))

    async def _see_off(self, sandbox: Sandbox, ending: ExitStatus | AircellError) -> None:
        """Removes all that there is of it, then tells how it ended. What cannot be removed now the reaper removes."""
        backend = self._engines.get(sandbox.record.backend)
        try:
            sandbox.log = await backend.log_tail(sandbox.id)
        except AircellError as error:
            log.debug("sandbox %s left no log: %s", sandbox.id, error)
        try:
            async with sandbox.changing:
                await settle(backend.remove(sandbox.id))
            await self.folder(sandbox.id).remove()
        except AircellError as error:
            log.error("sandbox %s is left to the reaper: %s", sandbox.id, error)
        if isinstance(ending, AircellError):
            sandbox.failed(ending)
            log.warning("sandbox %s failed: %s", sandbox.id, ending)
        else:
            sandbox.exited(ending)
            log.info("sandbox %s exited: %s", sandbox.id, ending)
