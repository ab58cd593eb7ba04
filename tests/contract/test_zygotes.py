"""What is particular to forks of zygotes. Everything else of the contract holds for them by its own tests."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import platform
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from aircell.backends.cri.backend import CriBackend
from aircell.errors import StartupFailed
from aircell.status import ExitStatus
from tests.contract.forks import FORKS, ZYGOTE, Fork, ForkBackend, RunningForks, Zygotes
from tests.contract.harness import Harness
from tests.contract.test_lifecycle import SLEEP, STUBBORN, is_up

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", [FORKS], indirect=True, ids=lambda each: each.name),
]


@pytest_asyncio.fixture(loop_scope="session")
async def backend(engine: RunningForks, tmp_path: Path) -> AsyncIterator[ForkBackend]:
    """Zygotes of the test's own, which may lie and die."""
    zygotes = Zygotes(tmp_path)
    backend = ForkBackend({"socket": str(engine.managed.socket)}, zygotes)
    yield backend
    await zygotes.close(backend)
    await backend.close()


# --- What a fork does not share with its siblings and its zygote ---


async def test_only_its_own_processes_are_visible(harness: Harness) -> None:
    """The agent and its job, while a sibling runs."""
    await harness.start(SLEEP)
    program = "import json, os; print(json.dumps([os.getpid(), [p for p in os.listdir('/proc') if p.isdecimal()]]))"
    assert await harness.report(program) == [2, ["1", "2"]]


SHARED = """
import ctypes, errno, json, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "there"
def memory(flags):
    if libc.shmget(77, 4096, flags) < 0:
        raise OSError(ctypes.get_errno(), "shmget")
def queue(flags):
    if libc.mq_open(b"/aircell", flags, 0o600, None) < 0:
        raise OSError(ctypes.get_errno(), "mq_open")
def listen():
    global server
    server = socket.socket(socket.AF_UNIX)
    server.bind("\\0aircell")
    server.listen()
"""
LEAVE = (
    SHARED
    + """
open("/dev/shm/aircell", "w").close(); open("/tmp/aircell", "w").close()
memory(0o1600); queue(os.O_CREAT | os.O_RDWR); listen()
print("up", flush=True); time.sleep(99)
"""
)
FIND = (
    SHARED
    + """
print(json.dumps({
    "shm": attempt(lambda: os.stat("/dev/shm/aircell")), "scratch": attempt(lambda: os.stat("/tmp/aircell")),
    "memory": attempt(lambda: memory(0o600)), "queue": attempt(lambda: queue(os.O_RDWR)),
    "queue file": attempt(lambda: os.stat("/dev/mqueue/aircell")),
    "socket": attempt(lambda: socket.socket(socket.AF_UNIX).connect("\\0aircell")), "name": socket.gethostname(),
}))
"""
)


async def test_siblings_share_neither_memory_nor_queues_nor_sockets(harness: Harness) -> None:
    await is_up(harness, await harness.start(LEAVE))
    sandbox = await harness.start(FIND)
    assert (await harness.finish(sandbox)).report == {
        "shm": "ENOENT", "scratch": "ENOENT", "memory": "ENOENT", "queue": "ENOENT", "queue file": "ENOENT",
        "socket": "ECONNREFUSED", "name": sandbox,
    }  # fmt: skip


# --- The second filter ---

CALLS = """
import ctypes, errno, json, os, platform, signal
libc = ctypes.CDLL(None, use_errno=True)
CLONE, SOCKET, SYNC = {"x86_64": (56, 41, 162), "aarch64": (220, 198, 81)}[platform.machine()]
def outcome(*call):
    child = os.fork()
    if child == 0:
        os.closerange(1, 3)  # some end with a cry
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # ends one that waits
        ctypes.set_errno(0)
        libc.syscall(*(ctypes.c_long(word) for word in call))
        os._exit(ctypes.get_errno())
    status = os.waitpid(child, 0)[1]
    return errno.errorcode.get(os.WEXITSTATUS(status), "done") if os.WIFEXITED(status) else "killed"
found = {
    f"{number} {words[0]}": outcome(number, *words)
    for number in range(480) if number != SYNC  # which waits for the disks of the node
    for words in ([0] * 6, [-1] * 6)
}
found |= {f"clone {1 << bit:#x}": outcome(CLONE, 1 << bit, 0, 0, 0, 0) for bit in (7, 17, 25, 26, 27, 28, 29, 30)}
found |= {f"socket {number}": outcome(SOCKET, number, 2, 0) for number in range(46)}
print(json.dumps(found))
"""
"""Every system call that there is, with two sets of arguments, every kind of namespace and every family of sockets."""
DENIED = {"EPERM", "ENOSYS"}


@pytest.mark.parametrize("user", ["50000", "0"])
async def test_no_call_is_open_that_a_sandbox_of_the_first_kind_has_closed(
    harness: Harness, engine: RunningForks, user: str
) -> None:
    first = dataclasses.replace(harness, backend=CriBackend({"socket": str(engine.managed.socket)}))
    fork, other = await harness.report(CALLS, user=user), await first.report(CALLS, user=user)
    closed = {call for call, outcome in other.items() if outcome in DENIED}
    assert {call: fork[call] for call in closed if fork[call] not in DENIED} == {}
    mount, bpf, clone3 = (165, 321, 435) if platform.machine() == "x86_64" else (40, 280, 435)
    assert closed >= {f"{mount} 0", f"{bpf} -1", f"{clone3} 0", "clone 0x10000000", "socket 40"}
    assert (other[f"{clone3} 0"], fork[f"{clone3} 0"]) == ("ENOSYS", "ENOSYS")
    assert len(closed) < len(other) / 2, "else nothing is open, and nothing was proven"


async def test_two_filters_and_no_way_round_them(harness: Harness) -> None:
    program = """
import ctypes, json, os, threading
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def refused(kind):
    return libc.unshare(kind), ctypes.get_errno()
kinds = [refused(1 << bit) for bit in (7, 17, 25, 26, 27, 28, 29, 30)]
threading.Thread(target=int).start()
print(json.dumps([status["Seccomp_filters"], [list(kind) for kind in set(kinds)], os.system("true")]))
"""
    assert await harness.report(program) == ["2", [[-1, errno.EPERM]], 0]


# --- Whatever dies ---


def group(pid: int) -> set[int]:
    """Every process in the memory group of this one."""
    [path] = [line.split(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":memory:" in line]
    return set(map(int, Path(f"/sys/fs/cgroup/memory{path}/cgroup.procs").read_text().split()))


def with_children(pid: int) -> set[int]:
    return {pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}


async def running(harness: Harness, program: str = SLEEP) -> Fork:
    sandbox = await harness.start(program)
    await is_up(harness, sandbox)
    return cast(ForkBackend, harness.backend).forks[sandbox]


async def exit(harness: Harness, fork: Fork) -> ExitStatus:
    """As the engine has it, of the shell."""
    return (await harness.finish(fork.plan.id)).exit


async def test_a_job_outlives_its_zygote(harness: Harness, backend: ForkBackend) -> None:
    fork = await running(harness)
    os.kill(fork.zygote.gate.peer_pid(), signal.SIGKILL)
    plan = harness.plan("")
    await backend.create(plan)
    with pytest.raises(StartupFailed, match="zygote"):
        await backend.start(plan.id)
    fork.worker.signal(signal.SIGTERM)
    assert await exit(harness, fork) == ExitStatus(code=7)


async def test_a_job_outlives_whoever_made_it(harness: Harness) -> None:
    """As when aircelld is killed: every gate closes."""
    fork = await running(harness)
    fork.zygote.gate.close()
    fork.gate.close()
    fork.worker.signal(signal.SIGTERM)
    assert await exit(harness, fork) == ExitStatus(code=7)


async def test_the_shell_killed(harness: Harness) -> None:
    fork = await running(harness, STUBBORN)
    [shell] = group(fork.agent) - with_children(fork.agent)
    os.kill(shell, signal.SIGKILL)
    assert await asyncio.to_thread(fork.worker.exit) == {
        "code": None, "signal": 9, "oom_killed": False, "reason": "Ended after the engine killed the sandbox.",
    }  # fmt: skip
    assert await exit(harness, fork) == ExitStatus(signal=signal.SIGKILL)


async def test_the_agent_killed(harness: Harness) -> None:
    fork = await running(harness, STUBBORN)
    os.kill(fork.agent, signal.SIGKILL)
    assert await exit(harness, fork) == ExitStatus(signal=signal.SIGKILL)


async def test_the_engine_stops_the_shell(harness: Harness, backend: ForkBackend) -> None:
    fork = await running(harness)
    await backend.stop(fork.plan.id, 20)
    assert await exit(harness, fork) == ExitStatus(code=7)
    assert (await asyncio.to_thread(fork.worker.exit))["reason"] == "Ended after the engine stopped the sandbox."


async def test_a_fork_that_does_not_end_is_removed(harness: Harness, backend: ForkBackend) -> None:
    fork = await running(harness, STUBBORN)
    sandbox = fork.plan.id
    os.kill(fork.agent, signal.SIGSTOP)
    await backend.remove(sandbox)
    assert await backend.sandboxes({}) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"*/aircell/{sandbox}"))


# --- A zygote that lies ---


@pytest.mark.parametrize(
    ("honest", "lie", "match"),
    [
        ("    drop_privileges(libc, order)\n", "", "capabilit"),
        ("    install_filter(libc)\n", "", "two seccomp filters"),
        ("        libc.unshare(CLONE_NEWPID)\n", "", "pid namespace"),
        ("CLONE_NEWIPC | CLONE_NEWUTS | (CLONE_NEWNET if order.own_network else 0)", "CLONE_NEWUTS", "ipc namespace"),
        (" | (CLONE_NEWNET if order.own_network else 0)", "", "net namespace"),
        ("order.uid, order.uid, order.uid", "order.uid + 1, order.uid + 1, order.uid + 1", "shell's user"),
    ],
)
async def test_a_fork_that_is_not_what_it_should_be(
    harness: Harness, backend: ForkBackend, honest: str, lie: str, match: str
) -> None:
    source = ZYGOTE.read_text()
    assert source.count(honest) == 1
    backend.zygotes.source = source.replace(honest, lie)
    with pytest.raises(StartupFailed, match=match):
        await harness.start(SLEEP)
