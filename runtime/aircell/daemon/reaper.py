"""Finds what nobody looks after, and removes it: on the engines by our labels, on the disk by folder.

A sandbox on an engine that is not in the registry is one that an earlier aircelld left. When its job was handed over
and its agent runs, the job is left alone and looked after again. Any other can never be given a job: aircelld's lock
on its state folder says that nobody else is bringing it up.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from aircell.backends.base import LABEL_NODE, LABEL_PREFIX, LABEL_ZYGOTE
from aircell.daemon.concurrency import settle
from aircell.daemon.config import Config
from aircell.daemon.containerd import ManagedContainerd
from aircell.daemon.engines import Engines
from aircell.daemon.folder import Folder
from aircell.daemon.launcher import Launcher
from aircell.daemon.owner import Owner
from aircell.daemon.pods import Pods
from aircell.daemon.pool import Pools
from aircell.daemon.record import Record
from aircell.daemon.registry import Registry
from aircell.daemon.zygotes import Zygotes
from aircell.errors import AircellError
from aircell.spec import SandboxSpec
from aircell.status import SandboxInfo

log = logging.getLogger(__name__)


class Reaper:
    """Sweeps once on request, or for ever."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        launcher: Launcher,
        registry: Registry,
        pools: Pools,
        zygotes: Zygotes,
        pods: Pods,
        containerd: ManagedContainerd | None,
    ) -> None:
        self._config = config
        self._engines = engines
        self._launcher = launcher
        self._registry = registry
        self._pools = pools
        self._zygotes = zygotes
        self._pods = pods
        self._containerd = containerd
        self._sweeping = asyncio.Lock()

    async def run(self) -> None:
        """Sweeps at each interval, until it is cancelled."""
        while True:
            await asyncio.sleep(self._config.reap_interval)
            try:
                await self.sweep()
            except Exception:
                log.exception("the search for leftovers failed; the next one may not")

    async def sweep(self, *, dry_run: bool = False) -> list[dict[str, Any]]:
        """Removes leftovers and adopts running jobs; with ``dry_run`` only tells what would be removed.

        An engine that does not answer is no failure: what cannot be reached now is tried again by the next sweep.
        """
        async with self._sweeping:
            removed: list[dict[str, Any]] = []
            on_engines: set[str] = set()
            complete = True
            for name, backend in self._engines:
                try:
                    found = await backend.sandboxes({LABEL_NODE: self._config.node_id()})
                except AircellError as error:
                    log.warning("backend %s cannot be searched for leftovers: %s", name, error)
                    complete = False
                    continue
                on_engines |= {info.id for info in found}
                busy = {info.labels.get(LABEL_ZYGOTE) for info in found}  # these have forks, or had until just now
                idle = [info for info in found if info.id not in busy]
                removed += [leftover for info in idle if (leftover := await self._judge(name, info, dry_run))]
            if complete:  # else a folder may belong to a sandbox of an engine that did not answer
                removed += await self._sweep_folders(on_engines, dry_run)
            if not dry_run:
                await self._sweep_shims()
            return removed

    async def _judge(self, name: str, info: SandboxInfo, dry_run: bool) -> dict[str, Any] | None:
        if self._looked_after(info.id):
            return None
        record = self._folder(info.id).load() or _unrecorded(name, info)
        if info.running and record.handed_over:
            if not dry_run:
                self._launcher.adopt(record)
            return None
        why = "its agent has ended" if record.handed_over else "it never got its job"
        return await self._remove(info.id, name, why, dry_run)

    def _looked_after(self, name: str) -> bool:
        return any(name in each for each in (self._registry, self._pools, self._zygotes, self._pods))

    def _folder(self, name: str) -> Folder:
        return Folder.of(self._config.state_dir, name)

    async def _sweep_folders(self, on_engines: set[str], dry_run: bool) -> list[dict[str, Any]]:
        removed = []
        for path in sorted((Path(self._config.state_dir) / "sandboxes").iterdir()):
            if path.name not in on_engines and not self._looked_after(path.name):
                record = self._folder(path.name).load()
                name = record.backend if record else None
                removed.append(await self._remove(path.name, name, "its sandbox is gone", dry_run))
        return [leftover for leftover in removed if leftover]

    async def _sweep_shims(self) -> None:
        try:
            if self._containerd:
                await self._containerd.remove_lost()
        except (AircellError, OSError) as error:  # containerd, just back, removes things at the same time
            log.warning("the managed containerd cannot be searched for leftovers: %s", error)

    async def _remove(self, id: str, backend: str | None, why: str, dry_run: bool) -> dict[str, Any] | None:
        """On the engine even when it does not list the sandbox: something smaller may be left of it there."""
        if not dry_run:
            log.info("removing sandbox %s: %s", id, why)
            try:
                if backend:
                    await settle(self._engines.get(backend).remove(id))
                await self._folder(id).remove()
            except AircellError as error:
                log.error("sandbox %s cannot be removed: %s", id, error)
                return None
        return {"sandbox": id, "why": why}


def _unrecorded(backend: str, info: SandboxInfo) -> Record:
    """For a sandbox whose record is lost. Its agent may have a job, so it counts as handed over."""
    return Record(
        id=info.id,
        backend=backend,
        role=info.labels.get(LABEL_PREFIX + "role", ""),
        spec=SandboxSpec(image=info.image or "unknown"),
        labels=dict(info.labels),
        owner=Owner(),
        created_at=info.created_at,
        handed_over=True,
    )
