"""A resident, from aircelld's side: a sandbox that has imported all, and forks for each job, which stays in it.

What runs in it is the image's. So no job passes through it: each fork has a connection of its own, over which the
kernel says which process it is, and is looked at from outside before it gets a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from pathlib import PurePosixPath
from typing import Any

from aircell.backends.base import IdRange
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.daemon import outside
from aircell.daemon.concurrency import complete, readable
from aircell.daemon.gate import Gate
from aircell.daemon.record import Record
from aircell.daemon.shape import Shape
from aircell.daemon.zygote import zygote_spec
from aircell.deadlines import within
from aircell.errors import StartupFailed
from aircell.policy import Policy
from aircell.protocol import AsyncConnection
from aircell.spec import SCRATCH_DIR, SandboxSpec
from aircell.status import ExitStatus

FORK_SECONDS = 10.0
"""In which a fork must be ready."""
_CREDENTIALS = struct.Struct("3i")
_SHM_DIR = "/dev/shm"  # noqa: S108 - the path inside
_SHM_SIZE = "64m"
"""What engines give where nothing is said."""


def confined_spec(spec: SandboxSpec) -> SandboxSpec:
    """What a resident is itself whose forks get namespaces of their own: as a zygote, with the mounts of its jobs."""
    return zygote_spec(spec).model_copy(update={"annotations": spec.annotations})


def order(shape: Shape, ids: IdRange | None) -> dict[str, Any]:
    """The ``fork`` frame."""
    spec = shape.spec
    sizes = {SCRATCH_DIR: spec.resources.scratch, _SHM_DIR: spec.resources.shm or _SHM_SIZE}
    return {
        "namespaces": ids is not None,
        "own_network": spec.network == "none",
        "own_shm": True,  # there is one, which the fork covers with its own
        "masked": [path for path in MASKED_PATHS if path.startswith("/proc/")],
        "read_only": list(READONLY_PATHS),
        "sizes": {place: f",size={size}" if size else "" for place, size in sizes.items()},
        "kept": [mount.target for mount in shape.mounts if any(_is_below(mount.target, place) for place in sizes)],
        "user": spec.user,
        "group": spec.group,
        "groups": list(spec.groups),
    }


class Fork:
    """The :class:`~aircell.daemon.place.Place` of a job in a resident: a process, whom all others of its job follow."""

    def __init__(self, pid: int) -> None:
        """Raises StartupFailed when it has ended."""
        self._pidfd = _open(pid)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        complete(self.ended)

    def kill(self, number: signal.Signals) -> None:
        """Idempotent."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> ExitStatus:
        """Its parent alone can know how it ended."""
        await asyncio.shield(self.ended)
        return ExitStatus()

    async def stop(self, grace: float) -> None:
        self.kill(signal.SIGTERM)
        await asyncio.wait({self.ended}, timeout=grace)
        await self.remove()

    async def remove(self) -> None:
        """Others of its job end with it: by the kernel as the first of their PID namespace, or by the resident."""
        self.kill(signal.SIGKILL)
        await asyncio.shield(self.ended)

    async def log_tail(self) -> str:
        """What agents in a resident write is in the resident's log."""
        return ""

    def save(self, record: Record) -> None:
        """Nothing: the next aircelld looks after the resident until its last fork has ended."""


class ForkGate(Gate):
    """A gate that is a pair of sockets, of which a fork has the other."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(AsyncConnection(sock))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._pid = 0

    async def introduced(self) -> None:
        """Waits until the fork has said its first word. Raises StartupFailed when it ends before."""
        sock = self._agent.sock
        await readable(sock.fileno())
        said, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_PEEK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        for level, kind, content in ancillary:
            if said and (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self._pid = _CREDENTIALS.unpack(content)[0]
                return
        raise StartupFailed("the fork ended before it could take a job.")

    def peer_pid(self) -> int:
        return self._pid

    async def _receive(self, *expected: str) -> dict[str, Any]:
        """Nobody else would tell that a fork has ended."""
        frame = await self._frame(*expected)
        if frame is None:
            raise StartupFailed("the fork ended before it could take a job.")
        return frame


class Resident:
    """One that is ready."""

    def __init__(self, record: Record, gate: Gate, shape: Shape, policy: Policy) -> None:
        """``shape`` is what its forks are to be. Raises StartupFailed when it has ended."""
        self.id = record.id
        self.gate = gate
        self.forks: set[Fork] = set()
        """All that have not ended."""
        self.made = 0
        """How many there have been."""
        self._ids = record.ids
        self._policy = policy
        self.learned = shape.learned
        """Modules that it has tried to preload, beside those that were named."""
        self._user = shape.spec.user
        self._order = order(shape, record.ids)
        self._view = outside.look(gate.peer_pid())

    async def fork(self) -> tuple[ForkGate, Fork]:
        """Another, which waits for its job. Raises StartupFailed when it is not what it should be, and whatever its
        agent says."""
        try:
            return await within(FORK_SECONDS, self._fork())
        except asyncio.TimeoutError as error:
            raise StartupFailed(f"a fork of {self.id} was not ready within {FORK_SECONDS:g} s.") from error

    async def _fork(self) -> tuple[ForkGate, Fork]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        gate = ForkGate(ours)
        try:
            with theirs:
                await self.gate.fork(self._order, (theirs.fileno(),))
            await gate.introduced()
            fork = self._begun(gate.peer_pid())
            await gate.ready()
            self._check(outside.look(gate.peer_pid()))
            return gate, fork
        except BaseException:
            gate.close()  # with which the fork ends
            raise

    def _begun(self, pid: int) -> Fork:
        fork = Fork(pid)
        self.made += 1
        self.forks.add(fork)
        fork.ended.add_done_callback(lambda _: self.forks.discard(fork))
        return fork

    def _check(self, fork: outside.View) -> None:
        if self._ids is None:
            outside.check_neighbour(fork, self._view)
            return
        outside.check_inmate(fork, self._view, own_network=bool(self._order["own_network"]))
        if 0 in outside.inside(fork.uids, self._ids) and not self._policy.root:
            raise self._policy.root_refused(self._user)


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OSError) as error:
        raise StartupFailed(f"process {pid} of the resident cannot be seen: {error}.") from error


def _is_below(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
