"""The harness of the contract, with forks of zygotes in place of sandboxes of the first kind."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import aircell.agent
from aircell.backends.base import IdRange, SandboxPlan
from aircell.daemon.gate import Gate
from aircell.daemon.zygote import Zygote, zygote_spec
from aircell.spec import RUN_DIR, SCRATCH_DIR, Job, Mount
from tests.contract.harness import Harness, Outcome
from tests.support.agent import Worker, read_all

CODE = Path(aircell.agent.__file__).parent
ZYGOTE = CODE / "zygote.py"
PATIENCE = 20.0


@dataclass
class ForkHarness(Harness):
    """Each sandbox is a fork of a zygote of its own; its program is the job."""

    gates: dict[str, Gate] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    zygotes: list[Zygote] = field(default_factory=list)
    zygote_source: str = ""
    """In place of ours."""

    async def zygote(self, plan: SandboxPlan) -> Zygote:
        """One that can fork for this plan."""
        name = f"z{plan.id}"
        ids = IdRange(0x70000000 + 2**16 * len(self.zygotes))
        mounts = self._folder(name, "agent.py", "zygote.py")
        if self.zygote_source:
            (self.folder / name / "run" / "zygote.py").write_text(self.zygote_source)
        gate = Gate(self.folder / name / "run" / "gate.sock")
        self.made.append(name)
        zygote = replace(
            plan,
            id=name,
            spec=zygote_spec(plan.spec),
            ids=ids,
            argv=(plan.spec.python, f"{RUN_DIR}/zygote.py"),
            mounts=mounts,
            labels={"aircell.dev/sandbox": name},
            annotations={},
        )
        await self.backend.create(zygote)
        await self.backend.start(name)
        await asyncio.wait_for(gate.connected(), PATIENCE)
        await asyncio.wait_for(gate.ready(), PATIENCE)
        self.zygotes.append(Zygote(name, ids, gate))
        return self.zygotes[-1]

    async def start_plan(self, plan: SandboxPlan) -> str:
        return await self.start_in(await self.zygote(plan), plan)

    async def start_in(self, zygote: Zygote, plan: SandboxPlan) -> str:
        """Forks the zygote for this plan, and hands over the plan's program."""
        gate = await self.fork(zygote, plan)
        self.workers[plan.id] = worker = Worker()
        job = Job(kind="exec", argv=tuple(plan.argv))
        await gate.hand_over(job, plan.spec.stop_grace, [end.fileno() for end in worker.theirs])
        for theirs in worker.theirs:
            theirs.close()
        return plan.id

    async def fork(self, zygote: Zygote, plan: SandboxPlan) -> Gate:
        """Its gate, at which it waits for its job."""
        await self.shell(zygote, plan)
        await asyncio.wait_for(zygote.fill(self.gates[plan.id], plan), PATIENCE)
        return self.gates[plan.id]

    async def shell(self, zygote: Zygote, plan: SandboxPlan) -> None:
        """A shell for this plan that nothing has entered."""
        targets = {mount.target for mount in plan.mounts}
        own = [mount for mount in self._folder(plan.id, "shell.py") if mount.target not in targets]
        self.gates[plan.id] = Gate(self.folder / plan.id / "run" / "gate.sock")
        argv = (plan.spec.python, "-IS", f"{RUN_DIR}/shell.py")
        await self.backend.create(
            replace(plan, within=zygote.id, ids=zygote.ids, argv=argv, mounts=(*own, *plan.mounts))
        )
        await self.backend.start(plan.id)

    async def finish(self, sandbox: str) -> Outcome:
        """As the engine has it, of the shell."""
        log = await asyncio.to_thread(read_all, self.workers[sandbox].stdout)
        return Outcome(await self.backend.wait(sandbox), log)

    async def close(self) -> None:
        """Removes the sandboxes before their zygotes."""
        for gate in (*self.gates.values(), *(zygote.gate for zygote in self.zygotes)):
            gate.close()
        for worker in self.workers.values():
            for sock in (worker.requests, worker.stdout, worker.stderr, worker.logs, worker.lifeline):
                sock.close()
        zygotes = {zygote.id for zygote in self.zygotes}
        for name in sorted(self.made, key=zygotes.__contains__):
            await self.backend.remove(name)

    def _folder(self, name: str, *files: str) -> list[Mount]:
        """What aircelld lays out for a sandbox."""
        run, scratch = self.folder / name / "run", self.folder / name / "scratch"
        run.mkdir(parents=True)
        scratch.mkdir()
        scratch.chmod(0o1777)
        for file in files:
            shutil.copy(CODE / file, run)
        (run / "agent.json").write_text('{"preload": []}')
        return [Mount(source=str(run), target=RUN_DIR), Mount(source=str(scratch), target=SCRATCH_DIR, read_only=False)]
