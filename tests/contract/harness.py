"""What a contract test is written with: a backend, an image on its engine, and a way to look out of a sandbox."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aircell.backends.base import LABEL_SANDBOX, Backend, SandboxPlan
from aircell.backends.cri.client import CriClient
from aircell.daemon.containerd import ManagedContainerd
from aircell.errors import UnsupportedSpec
from aircell.spec import Mount, SandboxSpec
from aircell.status import ExitStatus, ImageInfo

IMAGE = "localhost/aircell/base:test"


@dataclass(frozen=True)
class Outcome:
    """How a sandbox ended, and what it had printed."""

    exit: ExitStatus
    log: str

    @property
    def report(self) -> Any:
        """What its program printed as JSON."""
        assert self.exit == ExitStatus(code=0), self
        return json.loads(self.log)


@dataclass
class Harness:
    """Makes plans as aircelld would, with a plain command in place of the agent."""

    backend: Backend
    image: ImageInfo
    folder: Path
    runtime_handler: str | None = None
    gateway: str = ""
    """The node's address on the network that ``network: pod`` means."""
    made: list[str] = field(default_factory=list)

    def plan(
        self,
        program: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> SandboxPlan:
        """A sandbox that runs Python source, or a command; ``spec`` are fields of SandboxSpec."""
        sandbox = f"t{uuid.uuid4().hex[:12]}"
        self.made.append(sandbox)
        log_dir = self.folder / sandbox
        log_dir.mkdir()
        fields = {"runtime_handler": self.runtime_handler, "annotations": dict(annotations or {}), **spec}
        return SandboxPlan(
            id=sandbox,
            spec=SandboxSpec(image=IMAGE, **fields),
            image=self.image,
            argv=["python3", "-c", program] if isinstance(program, str) else list(program),
            env=dict(env or {}),
            mounts=list(mounts),
            labels={LABEL_SANDBOX: sandbox, **(labels or {})},
            annotations=dict(annotations or {}),
            log_dir=str(log_dir),
        )

    async def start(self, program: str | Sequence[str], **options: Any) -> str:
        """The id of a sandbox that runs."""
        return await self.start_plan(self.plan(program, **options))

    async def start_plan(self, plan: SandboxPlan) -> str:
        """Sees to it that whatever is refused is refused before anything is made."""
        try:
            await self.backend.create(plan)
        except UnsupportedSpec:
            assert plan.id not in {info.id for info in await self.backend.sandboxes({})}
            raise
        await self.backend.start(plan.id)
        return plan.id

    async def finish(self, sandbox: str) -> Outcome:
        """Waits for its end."""
        status = await self.backend.wait(sandbox)
        return Outcome(status, await self.backend.log_tail(sandbox, 2**20))

    async def run(self, program: str | Sequence[str], **options: Any) -> Outcome:
        """From the plan to the end."""
        return await self.finish(await self.start(program, **options))

    async def report(self, program: str, **options: Any) -> Any:
        """What a program that succeeds prints as JSON."""
        return (await self.run(program, **options)).report


@contextlib.asynccontextmanager
async def speaking_to(engine: ManagedContainerd) -> AsyncIterator[CriClient]:
    """A client beside the backend, for what the backend has no word for."""
    client = CriClient(str(engine.socket))
    try:
        yield client
    finally:
        await client.close()
