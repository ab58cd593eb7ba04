"""The life of a sandbox: start, end, wait, stop, remove, and what each says when things are not as expected."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from dataclasses import fields
from pathlib import Path

import pytest

from aircell import agent
from aircell.backends.base import LABEL_SANDBOX, Backend, PodPlan
from aircell.errors import AircellError, EngineError, NotFound, StartupFailed
from aircell.spec import Mount
from aircell.status import ExitStatus
from tests.contract.harness import Harness, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
HARMLESS |= {signal.SIGURG, signal.SIGWINCH}
"""They end no process, see signal(7)."""
TERMINATING = sorted({int(number) for number in signal.valid_signals() - HARMLESS})
SLEEP = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(7)); print('up', flush=True); time.sleep(99)"
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"


async def is_up(harness: Harness, sandbox: str) -> None:
    end = time.monotonic() + 20
    while "up" not in await harness.backend.log_tail(sandbox):
        assert time.monotonic() < end, "the program never came up"
        await asyncio.sleep(0.02)


async def test_exit_codes(harness: Harness) -> None:
    """As the engine tells them of PID 1; those from 129 on it also uses for signals."""
    codes = (0, 1, 77, 126, 127, 128, 200, 255)
    outcomes = await asyncio.gather(*(harness.run(["sh", "-c", f"exit {code}"]) for code in codes))
    assert [outcome.exit for outcome in outcomes] == [ExitStatus(code=code) for code in codes]


async def test_death_by_a_signal(harness: Harness) -> None:
    """Of PID 1, which the kernel lets die of nothing but KILL from outside and its own faults."""
    beyond_its_file = (
        "import mmap, os; fd = os.memfd_create(''); os.truncate(fd, 1); m = mmap.mmap(fd, 1); os.truncate(fd, 0); m[0]"
    )
    segmentation, bus = await asyncio.gather(
        harness.run("import ctypes; ctypes.string_at(1)"), harness.run(beyond_its_file)
    )
    assert segmentation.exit == ExitStatus(signal=signal.SIGSEGV)
    assert bus.exit == ExitStatus(signal=signal.SIGBUS)


async def test_every_exit_code_and_every_terminating_signal_of_a_job(harness: Harness) -> None:
    """As the agent tells them of its child."""
    program = """
import json, os, resource, signal, sys
sys.path.insert(0, "/mnt")
import agent
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def ended(end):
    child = os.fork()
    if child == 0:
        end()
    return agent.describe_exit(os.waitpid(child, 0)[1], 0, "")
def die(number):
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.kill(os.getpid(), number)
codes = [ended(lambda: os._exit(code)) for code in range(256)]
signals = [ended(lambda: die(number)) for number in TERMINATING]
print(json.dumps([codes, signals]))
"""
    program = f"TERMINATING = {TERMINATING}" + program
    [codes, signals] = await harness.report(program, mounts=[Mount(source=agent.__file__, target="/mnt/agent.py")])
    assert [ExitStatus.from_wire(each) for each in codes] == [ExitStatus(code=code) for code in range(256)]
    assert [ExitStatus.from_wire(each).returncode for each in signals] == [-number for number in TERMINATING]


async def test_stop_lets_the_program_end_by_itself(harness: Harness) -> None:
    sandbox = await harness.start(SLEEP)
    await is_up(harness, sandbox)
    before = time.monotonic()
    await harness.backend.stop(sandbox, 20)
    assert time.monotonic() - before < 10
    assert await harness.backend.wait(sandbox) == ExitStatus(code=7)


@pytest.mark.field("stop_grace")
async def test_stop_kills_after_the_grace(harness: Harness) -> None:
    sandbox = await harness.start(STUBBORN)
    await is_up(harness, sandbox)
    before = time.monotonic()
    await harness.backend.stop(sandbox, 1)
    assert 0.9 < time.monotonic() - before < 10
    assert await harness.backend.wait(sandbox) == ExitStatus(signal=signal.SIGKILL)


async def test_stop_without_grace_kills_at_once(harness: Harness) -> None:
    sandbox = await harness.start(STUBBORN)
    before = time.monotonic()
    await harness.backend.stop(sandbox, 0)
    assert time.monotonic() - before < 5
    assert await harness.backend.wait(sandbox) == ExitStatus(signal=signal.SIGKILL)


async def test_wait_sees_the_end_at_once(harness: Harness) -> None:
    sandbox = await harness.start(SLEEP)
    await is_up(harness, sandbox)
    waiting = asyncio.create_task(harness.backend.wait(sandbox))
    await asyncio.sleep(0.3)
    await harness.backend.stop(sandbox, 5)
    assert await asyncio.wait_for(waiting, 0.5) == ExitStatus(code=7)


async def test_cancelling_a_wait_disturbs_nothing(harness: Harness) -> None:
    sandbox = await harness.start(SLEEP)
    await is_up(harness, sandbox)
    waiting = asyncio.create_task(harness.backend.wait(sandbox))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    [info] = await harness.backend.sandboxes({})
    assert info.running


async def test_stop_and_remove_may_be_repeated(harness: Harness) -> None:
    sandbox = await harness.start(SLEEP)
    for _ in range(2):
        await harness.backend.stop(sandbox, 0)
    for _ in range(2):
        await harness.backend.remove(sandbox)
    assert await harness.backend.sandboxes({}) == []


async def test_remove_as_soon_as_the_end_is_seen_while_stop_is_still_at_work(harness: Harness) -> None:
    for _ in range(3):
        sandbox = await harness.start(SLEEP)
        await is_up(harness, sandbox)
        stopping = asyncio.create_task(harness.backend.stop(sandbox, 5))
        await harness.backend.wait(sandbox)
        await asyncio.gather(stopping, harness.backend.remove(sandbox))
    assert await harness.backend.sandboxes({}) == []


async def test_remove_ends_what_runs(harness: Harness) -> None:
    sandbox = await harness.start(STUBBORN)
    await harness.backend.remove(sandbox)
    assert await harness.backend.sandboxes({}) == []


async def test_remove_while_it_is_made_and_started(harness: Harness) -> None:
    """Whoever makes it hears of that, if it comes too early; a second removal finds what was made after the first."""
    for delay in (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        plan = harness.plan(STUBBORN)
        making = asyncio.create_task(harness.start_plan(plan))
        await asyncio.sleep(delay)
        await harness.backend.remove(plan.id)
        with contextlib.suppress(AircellError):
            await making
        await harness.backend.remove(plan.id)
    assert await harness.backend.sandboxes({}) == []


async def test_an_unknown_sandbox(backend: Backend) -> None:
    await backend.stop("no-such-sandbox", 1)
    await backend.remove("no-such-sandbox")
    for call in (backend.wait, backend.start, backend.log_tail):
        with pytest.raises(NotFound, match="no-such-sandbox"):
            await call("no-such-sandbox")


async def test_one_id_makes_one_sandbox(harness: Harness) -> None:
    plan = harness.plan(SLEEP)
    await harness.backend.create(plan)
    with pytest.raises(EngineError):
        await harness.backend.create(plan)
    assert [info.id for info in await harness.backend.sandboxes({})] == [plan.id]


@pytest.mark.first_kind("the pod of a shell is its zygote's")
async def test_what_is_prepared_becomes_a_sandbox(harness: Harness) -> None:
    """Of which the container is its own, as if nothing had been prepared; an engine may have nothing to prepare."""
    before = harness.plan(SLEEP)
    pod = await harness.backend.prepare(PodPlan(**{each.name: getattr(before, each.name) for each in fields(PodPlan)}))
    assert [info.id for info in await harness.backend.sandboxes({})] == ([before.id] if pod else [])
    program = "import os, time; print(os.getuid(), os.environ['A'], 'up', flush=True); time.sleep(99)"
    wanted = harness.plan(program, env={"A": "b"}, labels={"aircell.dev/dag": "etl"}, user="7")
    labels = {**wanted.labels, LABEL_SANDBOX: before.id}
    plan = dataclasses.replace(wanted, id=before.id, labels=labels, log_dir=before.log_dir, pod=pod)
    await harness.start_plan(plan)
    [info] = await harness.backend.sandboxes({})
    assert (info.id, info.running) == (plan.id, True)
    assert info.labels.items() >= labels.items()
    assert [info.id for info in await harness.backend.sandboxes({"aircell.dev/dag": "etl"})] == [plan.id]
    await is_up(harness, plan.id)
    await harness.backend.stop(plan.id, 0)
    assert await harness.finish(plan.id) == Outcome(ExitStatus(signal=signal.SIGKILL), "7 b up\n")
    await harness.backend.remove(plan.id)
    assert await harness.backend.sandboxes({}) == []


@pytest.mark.first_kind("the pod of a shell is its zygote's")
async def test_what_is_prepared_and_not_wanted_is_removed(harness: Harness) -> None:
    plan = harness.plan(SLEEP)
    await harness.backend.prepare(plan)
    for _ in range(2):
        await harness.backend.remove(plan.id)
        assert await harness.backend.sandboxes({}) == []


async def test_a_container_that_cannot_be_made_leaves_nothing(harness: Harness) -> None:
    plan = harness.plan(SLEEP)
    plan = dataclasses.replace(plan, image=dataclasses.replace(plan.image, id="sha256:" + "0" * 64))
    with pytest.raises(AircellError):
        await harness.backend.create(plan)
    assert await harness.backend.sandboxes({}) == []


@pytest.mark.first_kind("the interpreter is its zygote's, which is a sandbox of the first kind")
async def test_an_interpreter_that_is_not_there(harness: Harness) -> None:
    plan = harness.plan(["no-such-python", "-V"])
    await harness.backend.create(plan)
    with pytest.raises(StartupFailed, match=rf"{plan.id}.*not in the image.*`python`"):
        await harness.backend.start(plan.id)


@pytest.mark.first_kind("the interpreter is its zygote's, which is a sandbox of the first kind")
@pytest.mark.parametrize("content", ["\x7fELF but no more", "#!/no/such/interpreter\n"])
async def test_an_interpreter_that_cannot_run(harness: Harness, tmp_path: Path, content: str) -> None:
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(0o755)
    mount = Mount(source=str(program), target="/mnt/python")
    outcome = await harness.run(["/mnt/python"], mounts=[mount])
    assert outcome.exit in (ExitStatus(code=1), ExitStatus(code=255))  # of the low-level runtime: runc 1.5 says 255
    assert "exec" in outcome.log
    assert "/mnt/python" in outcome.log


async def test_log_tail(harness: Harness) -> None:
    sandbox = await harness.start("print('ä' * 50_000); print('last')")
    await harness.backend.wait(sandbox)
    assert await harness.backend.log_tail(sandbox, 10**6) == "ä" * 50_000 + "\nlast\n"
    assert await harness.backend.log_tail(sandbox, 8) == "ä\nlast\n"


@pytest.mark.field("labels")
async def test_labels(harness: Harness) -> None:
    labels = {"aircell.dev/dag": "ärger", "team": "a/b c"}
    sandbox = await harness.start(SLEEP, labels=labels)
    await harness.start(SLEEP)
    [info] = await harness.backend.sandboxes({"aircell.dev/dag": "ärger"})
    assert (info.id, info.running, info.exit) == (sandbox, True, None)
    assert info.labels.items() >= {"aircell.dev/sandbox": sandbox, **labels}.items(), "the image may have some, too"
    assert abs(info.created_at - time.time()) < 60


@pytest.mark.field("annotations")
async def test_annotations(harness: Harness) -> None:
    await harness.start(SLEEP, annotations={"note": "x" * 1000})
    [info] = await harness.backend.sandboxes({})
    assert dict(info.annotations) == {"note": "x" * 1000}


async def test_a_sandbox_that_ended_is_still_listed(harness: Harness) -> None:
    sandbox = await harness.start(["sh", "-c", "exit 3"])
    await harness.backend.wait(sandbox)
    [info] = await harness.backend.sandboxes({})
    assert (info.running, info.exit) == (False, ExitStatus(code=3))


async def test_nobody_else_owns_the_engine(backend: Backend) -> None:
    assert await backend.foreign_owner() is None
