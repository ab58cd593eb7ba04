"""A zygote, from aircelld's side: an interpreter that has imported all, and forks into shells.

What runs in it is the image's, with capabilities in its user namespace. So no job passes through it, and each fork is
looked at from outside, when it has entered its shell and again when it says that it is ready.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aircell.backends.base import IdRange, SandboxPlan
from aircell.backends.kernel_paths import MASKED_PATHS, READONLY_PATHS
from aircell.daemon import outside
from aircell.daemon.gate import Gate, ListeningGate
from aircell.errors import StartupFailed
from aircell.protocol import AsyncConnection
from aircell.spec import SandboxSpec, Security

CAPABILITIES = ("SETGID", "SETPCAP", "SETUID", "SYS_ADMIN", "SYS_CHROOT")
"""What a fork needs to enter its shell and to give up everything else."""
NETWORK_CAPABILITY = "NET_ADMIN"
"""To bring up the loopback interface of a network namespace of its own."""
_MAX_HOSTNAME = 63


def zygote_spec(spec: SandboxSpec) -> SandboxSpec:
    """What a zygote for sandboxes of this spec is itself: user 0 of its namespace, and without what is a task's own."""
    own_network = (NETWORK_CAPABILITY,) if spec.network == "none" else ()
    return spec.model_copy(
        update={
            "user": "0",
            "group": 0,
            "groups": (),
            "security": Security(add_capabilities=(*CAPABILITIES, *own_network)),
            "mounts": (),
            "labels": {},
            "annotations": {},
        }
    )


def why_not(spec: SandboxSpec) -> str:
    """Why no fork can be what this spec asks for; empty when one can."""
    security = spec.security
    if security.profile != "restricted" or security.add_capabilities:
        return "it is to have capabilities"
    if security.seccomp != "runtime-default" or security.apparmor is not None:
        return "it is to have a seccomp or an AppArmor profile of its own"
    if spec.network == "host":
        return "it is to have the node's network"
    if spec.devices:
        return "it is to have devices"
    return ""


@dataclass
class Zygote:
    """One that is ready."""

    id: str
    """Of the sandbox that it is, in whose pod its shells are."""
    ids: IdRange
    gate: Gate
    learned: tuple[str, ...] = ()
    """Modules that it has tried to preload, beside those that were named."""
    view: outside.View = field(init=False)
    """When it was ready."""

    def __post_init__(self) -> None:
        self.view = outside.look(self.gate.peer_pid())

    async def fill(self, gate: ListeningGate, plan: SandboxPlan, *, beforehand: bool) -> int:
        """Forks into the shell that is about to connect to ``gate``, until the fork waits there for its job.

        ``beforehand``: there is no job yet.

        Returns its uid as the image has it. Raises StartupFailed when the fork is not what it should be. When the
        zygote or the fork ends, the leash closes, and the shell ends with it.
        """
        leash = AsyncConnection(await gate.shell())
        with contextlib.closing(leash):
            pid = leash.peer_credentials()[0]
            shell = outside.look(pid)
            order = fork_order(plan, shell, self.ids, beforehand=beforehand)
            with _opened(pid, "ns/mnt", "fd/1", "fd/2") as (mounts, stdout, stderr):
                await self.gate.fork(order, (mounts, leash.sock.fileno(), stdout, stderr))
        await gate.connected()
        pid = gate.peer_pid()
        with outside.held(pid) as pidfd:
            outside.check_newborn(outside.look(pid), shell, self.view)
            outside.move(pid, pidfd, shell.cgroups)
            await gate.admit()
            await gate.ready()
            own_network = bool(order["own_network"])
            outside.check_confined(outside.look(pid), shell, self.view, own_network=own_network)
        return int(order["uid"])


def fork_order(plan: SandboxPlan, shell: outside.View, ids: IdRange, *, beforehand: bool) -> dict[str, Any]:
    """The ``fork`` frame: its user is the shell's, which the engine has found in the image."""
    return {
        "beforehand": beforehand,
        "hostname": plan.id[:_MAX_HOSTNAME],
        "own_network": plan.spec.network == "none",
        "own_shm": any(mount.target == "/dev/shm" for mount in plan.mounts),  # noqa: S108 - the path inside
        "masked": [path for path in MASKED_PATHS if path.startswith("/proc/")],
        "read_only": list(READONLY_PATHS),
        "uid": _the_one(outside.inside(shell.uids, ids)),
        "gid": _the_one(outside.inside(shell.gids, ids)),
        "groups": list(outside.inside(shell.groups, ids)),
    }


def _the_one(ids: tuple[int, ...]) -> int:
    if len(ids) != 1:
        raise StartupFailed(f"the first process of the shell has changed its user: {ids}.")
    return ids[0]


@contextlib.contextmanager
def _opened(pid: int, *names: str) -> Iterator[list[int]]:
    """Files of ``/proc/PID``."""
    with contextlib.ExitStack() as stack:
        fds = []
        for name in names:
            flags = os.O_WRONLY if name.startswith("fd/") else os.O_RDONLY
            fd = os.open(f"/proc/{pid}/{name}", flags | os.O_CLOEXEC | os.O_NOCTTY)
            stack.callback(os.close, fd)
            fds.append(fd)
        yield fds
