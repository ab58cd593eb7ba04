"""Forks of zygotes in place of sandboxes of the first kind: the same contract, by the same tests.

A fork's program is its job. It prints to the shell's log, as a program of the first kind prints to its container's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import aircell.agent
from aircell.backends.base import LABEL_SANDBOX, LABEL_ZYGOTE, IdRange, SandboxPlan
from aircell.backends.cri.backend import CriBackend
from aircell.daemon.executables import SHELL, executable
from aircell.daemon.gate import ListeningGate
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import Zygote, why_not, zygote_spec
from aircell.errors import StartupFailed, UnsupportedSpec
from aircell.spec import RUN_DIR, SCRATCH_DIR, Job, Mount
from aircell.status import SandboxInfo
from tests.contract.engines import CONTAINERDS, Containerd, RunningContainerd
from tests.support.agent import Worker

CODE = Path(aircell.agent.__file__).parent
ZYGOTE = CODE / "zygote.py"
PATIENCE = 20.0
PREFIX = "zygote-"

T = TypeVar("T")

_numbers = itertools.count()


class NotAFork(UnsupportedSpec):
    """Of no fork; aircelld makes a sandbox of the first kind of it."""


@dataclass
class Zygotes:
    """One for each family, as aircelld keeps them."""

    folder: Path
    source: str = ""
    """Of ``zygote.py``, in place of ours."""
    _members: dict[str, Zygote] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, backend: CriBackend, plan: SandboxPlan) -> Zygote:
        """The one for forks of this plan."""
        spec = plan.spec.model_copy(update={"cgroup_parent": None})  # tests look there for what is left of sandboxes
        family = Shape("cri", plan.image, spec, (), (), "", "").family
        async with self._lock:
            if family not in self._members:
                self._members[family] = await self._make(backend, replace(plan, spec=zygote_spec(spec)))
            return self._members[family]

    async def close(self, backend: CriBackend) -> None:
        for zygote in self._members.values():
            zygote.gate.close()
        for name in self._names:
            await backend.remove(name)

    async def _make(self, backend: CriBackend, plan: SandboxPlan) -> Zygote:
        number = next(_numbers)
        name, ids = f"{PREFIX}{number}", IdRange(0x70000000 + number * IdRange.length)
        self._names.append(name)
        mounts = lay_out(self.folder / name, "agent.py", "zygote.py")
        if self.source:
            (self.folder / name / "run" / "zygote.py").write_text(self.source)
        gate = ListeningGate(self.folder / name / "run" / "gate.sock")
        plan = replace(
            plan, id=name, ids=ids, argv=(plan.spec.python, f"{RUN_DIR}/zygote.py"), env={}, mounts=mounts,
            labels={LABEL_SANDBOX: name}, annotations={}, log_dir=str(self.folder / name),
        )  # fmt: skip
        try:
            await backend.create(plan)
            await backend.start(name)
            await asyncio.wait_for(gate.connected(), PATIENCE)
            await asyncio.wait_for(gate.ready(), PATIENCE)
        except BaseException:
            gate.close()
            await backend.remove(name)
            raise
        return Zygote(name, ids, gate)


@dataclass
class Fork:
    """One in the making, and what its worker holds."""

    zygote: Zygote
    plan: SandboxPlan
    gate: ListeningGate
    worker: Worker = field(default_factory=Worker)

    @property
    def agent(self) -> int:
        """Its pid on the node."""
        return self.gate.peer_pid()

    def close(self) -> None:
        self.gate.close()
        self.worker.close()


class ForkBackend(CriBackend):
    """Each sandbox that it makes is a fork; of the zygotes it says nothing."""

    def __init__(self, config: Mapping[str, object], zygotes: Zygotes) -> None:
        super().__init__(config)
        self.zygotes = zygotes
        self.forks: dict[str, Fork] = {}
        self._plain = CriBackend(config)

    async def close(self) -> None:
        for fork in self.forks.values():
            fork.close()
        await self._plain.close()
        await super().close()

    async def zygote(self, plan: SandboxPlan) -> Zygote:
        """The one that will be forked for this plan."""
        if reason := why_not(plan.spec):
            raise NotAFork(f"no fork can be this: {reason}.")
        return await self.zygotes.get(self._plain, plan)

    async def create(self, plan: SandboxPlan) -> None:
        zygote = await self.zygote(plan)
        targets = {mount.target for mount in plan.mounts}
        own = [mount for mount in lay_out(Path(plan.log_dir)) if mount.target not in targets]
        shell = replace(
            plan, within=zygote.id, ids=zygote.ids, argv=(f"{RUN_DIR}/shell",), env={},
            mounts=(*own, *plan.mounts), labels={**plan.labels, LABEL_ZYGOTE: zygote.id},
        )  # fmt: skip
        await super().create(shell)
        self.forks[plan.id] = Fork(zygote, plan, ListeningGate(Path(plan.log_dir) / "run" / "gate.sock"))

    async def start(self, sandbox: str) -> None:
        """Up to the job."""
        await super().start(sandbox)
        fork = self.forks[sandbox]
        await self._while_it_lives(sandbox, fork.zygote.fill(fork.gate, fork.plan, beforehand=True))
        await self._hand_over(fork)

    async def _hand_over(self, fork: Fork) -> None:
        """The program of its plan, with the streams of the shell."""
        job = Job(kind="exec", argv=tuple(fork.plan.argv), env=dict(fork.plan.env))
        requests, _, _, logs, lifeline = (end.fileno() for end in fork.worker.theirs)
        streams = [os.open(f"/proc/{fork.agent}/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC) for fd in (1, 2)]
        try:
            await fork.gate.hand_over(job, fork.plan.spec.stop_grace, [requests, *streams, logs, lifeline])
        finally:
            for fd in streams:
                os.close(fd)
        for end in fork.worker.theirs:
            end.close()

    async def remove(self, sandbox: str) -> None:
        if fork := self.forks.get(sandbox):
            fork.gate.close()
        await super().remove(sandbox)
        if fork := self.forks.pop(sandbox, None):
            fork.close()

    async def sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        return [each for each in await super().sandboxes(labels) if not each.id.startswith(PREFIX)]

    async def _while_it_lives(self, sandbox: str, work: Awaitable[T]) -> T:
        working, dying = asyncio.ensure_future(work), asyncio.ensure_future(self.wait(sandbox))
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
            if not working.done():
                raise StartupFailed(f"the shell {sandbox} ended before it was filled.")
            return working.result()
        except OSError as error:
            raise StartupFailed(f"the shell {sandbox} was removed before it was filled.") from error
        finally:
            working.cancel()
            dying.cancel()
            await asyncio.gather(working, dying, return_exceptions=True)


@dataclass(frozen=True)
class RunningForks(RunningContainerd):
    zygotes: Zygotes = field(kw_only=True)

    def new_backend(self, **settings: object) -> ForkBackend:
        return ForkBackend({"socket": str(self.managed.socket), **settings}, self.zygotes)


@dataclass(frozen=True)
class Forks(Containerd):
    """A containerd on which zygotes are forked; those of the contract's tests live as long as it does."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RunningForks]:
        async with super().running() as plain:
            zygotes = Zygotes(plain.folder / "zygotes")
            yield RunningForks(plain.kind, plain.managed, plain.folder, zygotes=zygotes)
            backend = CriBackend({"socket": str(plain.managed.socket)})
            await zygotes.close(backend)
            await backend.close()


def lay_out(folder: Path, *files: str) -> Sequence[Mount]:
    """What aircelld lays out for a sandbox."""
    run, scratch = folder / "run", folder / "scratch"
    run.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o1777)
    for file in files:
        shutil.copy(CODE / file, run)
    (run / "agent.json").write_text('{"preload": []}')
    (run / "shell").write_bytes(executable(SHELL))
    (run / "shell").chmod(0o755)
    return [Mount(source=str(run), target=RUN_DIR), Mount(source=str(scratch), target=SCRATCH_DIR, read_only=False)]


_PLAIN = CONTAINERDS[-1]
FORKS = Forks(f"{_PLAIN.name}, forks", _PLAIN.major, _PLAIN.binary, _PLAIN.runtime)
