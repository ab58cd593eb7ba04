"""Forks of zygotes behind the same walls as sandboxes of the first kind, and what is particular to them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aircell.backends.base import Backend
from aircell.daemon.zygote import Zygote
from aircell.errors import StartupFailed
from aircell.status import ExitStatus
from tests.contract.engines import CONTAINERDS, Running
from tests.contract.forks import ZYGOTE, ForkHarness
from tests.contract.harness import IMAGE, Harness
from tests.contract.test_isolation import (  # noqa: F401 - collected here once more, with the harness below
    listener,
    test_dns,
    test_environment,
    test_network_none_has_loopback_only,
    test_network_pod_has_an_address_and_a_way_to_the_node,
    test_nothing_of_the_nodes_environment_is_inside,
    test_restricted_is_the_default,
    test_the_default_seccomp_profile_filters,
    test_the_kernels_files_are_masked_or_read_only,
    test_the_root_is_read_only,
    test_user_and_groups,
)
from tests.contract.test_lifecycle import (  # noqa: F401
    SLEEP,
    STUBBORN,
    test_death_by_a_signal,
)
from tests.contract.test_mounts import (  # noqa: F401
    outer,
    test_a_file,
    test_nested_targets_in_any_order,
    test_read_only_and_read_write,
)
from tests.contract.test_resources import (  # noqa: F401
    bounded,
    test_memory_of_the_first_process,
    test_memory_within_the_limit,
    test_pids,
    test_scratch,
)
from tests.support.agent import Worker

ENGINES = [each for each in CONTAINERDS if each.major == "2.3." and each.runtime == "runc"]

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("engine", ENGINES, indirect=True, ids=lambda each: each.name),
]


@pytest_asyncio.fixture(loop_scope="session")
async def harness(engine: Running, backend: Backend, tmp_path: Path) -> AsyncIterator[ForkHarness]:
    image = await backend.image(IMAGE)
    assert image is not None
    harness = ForkHarness(backend, image, tmp_path, runtime_handler=engine.runtime, gateway=engine.gateway)
    try:
        yield harness
    finally:
        await harness.close()
    assert await backend.sandboxes({}) == []


# --- What a fork does not share with its siblings and its zygote ---


async def test_only_its_own_processes_are_visible(harness: ForkHarness) -> None:
    """The agent and its job, while a sibling runs."""
    plan = harness.plan(SLEEP)
    zygote = await harness.zygote(plan)
    await harness.start_in(zygote, plan)
    program = "import json, os; print(json.dumps([os.getpid(), [p for p in os.listdir('/proc') if p.isdecimal()]]))"
    sandbox = await harness.start_in(zygote, harness.plan(program))
    assert (await harness.finish(sandbox)).report == [2, ["1", "2"]]


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


async def test_siblings_share_neither_memory_nor_queues_nor_sockets(harness: ForkHarness) -> None:
    plan = harness.plan(LEAVE)
    zygote = await harness.zygote(plan)
    await harness.start_in(zygote, plan)
    await asyncio.to_thread(harness.workers[plan.id].until, "up")
    sandbox = await harness.start_in(zygote, harness.plan(FIND))
    assert (await harness.finish(sandbox)).report == {
        "shm": "ENOENT", "scratch": "ENOENT", "memory": "ENOENT", "queue": "ENOENT", "queue file": "ENOENT",
        "socket": "ECONNREFUSED", "name": sandbox,
    }  # fmt: skip


# --- The second filter ---

CALLS = """
import ctypes, errno, json, platform
libc = ctypes.CDLL(None, use_errno=True)
def code(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
numbers = {
    "x86_64": [56, 155, 161, 165, 166, 170, 171, 179, 246, 248, 249, 250, 272, 298, 300, 304, 308, 321, 323, 425],
    "aarch64": [39, 40, 41, 51, 60, 97, 116, 161, 162, 217, 218, 219, 220, 241, 262, 268, 280, 282, 425],
}[platform.machine()]
NEWUSER = ctypes.c_ulong(0x10000000)
found = {number: code(libc.syscall(number, NEWUSER, 0, 0, 0, 0)) for number in numbers}
found |= {number: code(libc.syscall(number, 0, 0, 0, 0, 0)) for number in (428, 429, 430, 431, 432, 433, 435, 442, 443)}
"""


async def test_no_call_is_open_that_a_sandbox_of_the_first_kind_has_closed(harness: ForkHarness) -> None:
    program = CALLS + "print(json.dumps(found))"
    first = Harness(harness.backend, harness.image, harness.folder, harness.runtime_handler, made=harness.made)
    fork, other = await harness.report(program), await first.report(program)
    assert fork == other
    assert fork["435"] == "ENOSYS"
    assert set(fork.values()) <= {"ENOSYS", "EPERM"}


async def test_two_filters_and_no_way_round_them(harness: ForkHarness) -> None:
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


async def running(harness: ForkHarness, program: str = SLEEP) -> tuple[Zygote, str, Worker]:
    plan = harness.plan(program)
    zygote = await harness.zygote(plan)
    sandbox = await harness.start_in(zygote, plan)
    worker = harness.workers[sandbox]
    await asyncio.to_thread(worker.until, "up")
    return zygote, sandbox, worker


async def test_a_job_outlives_its_zygote(harness: ForkHarness) -> None:
    zygote, sandbox, worker = await running(harness)
    os.kill(zygote.gate.peer_pid(), signal.SIGKILL)
    plan = harness.plan("")
    await harness.shell(zygote, plan)
    with pytest.raises(StartupFailed, match="zygote"):
        await zygote.fill(harness.gates[plan.id], plan)
    worker.signal(signal.SIGTERM)
    assert (await harness.finish(sandbox)).exit == ExitStatus(code=7)


async def test_a_job_outlives_whoever_made_it(harness: ForkHarness) -> None:
    """As when aircelld is killed: every gate closes."""
    zygote, sandbox, worker = await running(harness)
    zygote.gate.close()
    harness.gates[sandbox].close()
    worker.signal(signal.SIGTERM)
    assert (await harness.finish(sandbox)).exit == ExitStatus(code=7)


async def test_the_shell_killed(harness: ForkHarness) -> None:
    _, sandbox, worker = await running(harness, STUBBORN)
    gate = harness.gates[sandbox]
    [shell] = group(gate.peer_pid()) - with_children(gate.peer_pid())
    os.kill(shell, signal.SIGKILL)
    assert (await harness.finish(sandbox)).exit == ExitStatus(signal=signal.SIGKILL)
    assert await asyncio.to_thread(worker.exit) == {
        "code": None, "signal": 9, "oom_killed": False, "reason": "Ended after the engine killed the sandbox.",
    }  # fmt: skip


async def test_the_agent_killed(harness: ForkHarness) -> None:
    _, sandbox, _ = await running(harness, STUBBORN)
    os.kill(harness.gates[sandbox].peer_pid(), signal.SIGKILL)
    assert (await harness.finish(sandbox)).exit == ExitStatus(signal=signal.SIGKILL)


async def test_the_engine_stops_the_shell(harness: ForkHarness) -> None:
    _, sandbox, worker = await running(harness)
    await harness.backend.stop(sandbox, 20)
    assert (await harness.finish(sandbox)).exit == ExitStatus(code=7)
    assert (await asyncio.to_thread(worker.exit))["reason"] == "Ended after the engine stopped the sandbox."


async def test_a_fork_that_does_not_end_is_removed(harness: ForkHarness) -> None:
    _, sandbox, _ = await running(harness, STUBBORN)
    agent = harness.gates[sandbox].peer_pid()
    os.kill(agent, signal.SIGSTOP)
    await harness.backend.remove(sandbox)
    assert sandbox not in {info.id for info in await harness.backend.sandboxes({})}
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
async def test_a_fork_that_is_not_what_it_should_be(harness: ForkHarness, honest: str, lie: str, match: str) -> None:
    source = ZYGOTE.read_text()
    assert source.count(honest) == 1
    harness.zygote_source = source.replace(honest, lie)
    with pytest.raises(StartupFailed, match=match):
        await harness.start(SLEEP)
