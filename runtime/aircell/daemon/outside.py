"""What the kernel tells aircelld of a process in a sandbox. Nothing is asked of the process, nor believed of it.

Sources: proc(5), namespaces(7), cgroups(7), pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aircell.backends.base import IdRange
from aircell.errors import StartupFailed

_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_CGROUP_OPTIONS = ("ro", "rw", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods")
_FILTERS = 2
"""Seccomp filters of a fork: the engine's, and its own."""


@dataclass(frozen=True)
class View:
    """One process, at one moment."""

    uids: frozenset[int]
    """Of the node: real, effective, saved and of the file system."""
    gids: frozenset[int]
    groups: frozenset[int]
    capabilities: int
    """Every capability that it has or may come to have."""
    no_new_privileges: bool
    filters: int
    namespaces: Mapping[str, int]
    """Inode numbers by kind."""
    cgroups: Mapping[str, str]
    """Path by hierarchy; "" is version 2."""


def look(pid: int) -> View:
    """Raises StartupFailed when it has ended."""
    proc = Path(f"/proc/{pid}")
    try:
        status = parse_status((proc / "status").read_text())
        return View(
            uids=_numbers(status["Uid"]),
            gids=_numbers(status["Gid"]),
            groups=_numbers(status["Groups"]),
            capabilities=_union(status),
            no_new_privileges=status["NoNewPrivs"] == "1",
            filters=int(status.get("Seccomp_filters", "0")),
            namespaces={kind: (proc / "ns" / kind).stat().st_ino for kind in _NAMESPACES},
            cgroups=parse_cgroups((proc / "cgroup").read_text()),
        )
    except (OSError, KeyError) as error:
        raise StartupFailed(f"process {pid} of the sandbox ended while it was made ready.") from error


def parse_status(text: str) -> dict[str, str]:
    """``/proc/PID/status`` by field."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def parse_cgroups(text: str) -> dict[str, str]:
    """``/proc/PID/cgroup``: path by hierarchy."""
    fields = (line.split(":", 2) for line in text.splitlines())
    return {controllers: path for _, controllers, path in fields}


def inside(ids: frozenset[int], owned: IdRange) -> tuple[int, ...]:
    """Ids of the node as the user namespace has them, in order. Raises StartupFailed for one that is not its own."""
    if any(number not in range(owned.start, owned.start + owned.length) for number in ids):
        raise StartupFailed(f"the sandbox has an id of the node that is not its own: {sorted(ids)}.")
    return tuple(sorted(number - owned.start for number in ids))


def check_newborn(fork: View, shell: View, zygote: View) -> None:
    """Raises StartupFailed unless a process is one of this pod that has just entered this shell.

    That it is in the pod's user namespace says whose it is: none but the pod's processes are, or can come to be.
    """
    for kind in ("user", "mnt"):
        _same(kind, fork, shell)
    for kind in ("pid", "ipc", "uts"):
        _apart(kind, fork, shell, zygote)


def check_confined(fork: View, shell: View, zygote: View, *, own_network: bool) -> None:
    """Raises StartupFailed unless a fork is as little as a sandbox of its own would have made of it."""
    check_newborn(fork, shell, zygote)
    if own_network:
        _apart("net", fork, shell, zygote)
    for what, is_so in (
        ("the shell's user", (fork.uids, fork.gids, fork.groups) == (shell.uids, shell.gids, shell.groups)),
        ("the shell's control groups", fork.cgroups == shell.cgroups),
        ("no capability", fork.capabilities == 0),
        ("no new privileges", fork.no_new_privileges),
        ("two seccomp filters", fork.filters >= _FILTERS),
    ):
        if not is_so:
            raise StartupFailed(f"the zygote's fork does not have {what}: {fork}.", hint="Is the image to be trusted?")


def check_neighbour(fork: View, resident: View) -> None:
    """Raises StartupFailed unless a process is in the container of a resident that has no privileges to give up."""
    for kind in ("user", "pid", "mnt"):
        if fork.namespaces[kind] != resident.namespaces[kind]:
            raise StartupFailed(f"the resident's fork is not in its {kind} namespace.")


def check_inmate(fork: View, resident: View, *, own_network: bool) -> None:
    """Raises StartupFailed unless a fork that stays with its resident has given up all that others of it could see or
    suffer from. Its user, which the image alone can tell, is the caller's to look at."""
    if fork.namespaces["user"] != resident.namespaces["user"]:
        raise StartupFailed("the resident's fork is not in its user namespace.")
    for kind in ("mnt", "pid", "ipc", "uts", *(["net"] if own_network else [])):
        if fork.namespaces[kind] == resident.namespaces[kind]:
            raise StartupFailed(f"the resident's fork has no {kind} namespace of its own.")
    for what, is_so in (
        ("the resident's control groups", fork.cgroups == resident.cgroups),
        ("no capability", fork.capabilities == 0),
        ("no new privileges", fork.no_new_privileges),
        ("two seccomp filters", fork.filters >= _FILTERS),
    ):
        if not is_so:
            raise StartupFailed(
                f"the resident's fork does not have {what}: {fork}.", hint="Is the image to be trusted?"
            )


@contextlib.contextmanager
def held(pid: int) -> Iterator[int]:
    """A pidfd. Raises StartupFailed when there is no such process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise StartupFailed(f"process {pid} of the sandbox ended while it was made ready.") from error
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def move(pid: int, pidfd: int, cgroups: Mapping[str, str]) -> None:
    """Puts a process into control groups. Raises StartupFailed when it has ended meanwhile, or they have gone."""
    mounted = _hierarchies()
    try:
        for hierarchy, path in cgroups.items():
            if hierarchy in mounted:
                (mounted[hierarchy] / path.lstrip("/") / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise StartupFailed(f"process {pid} cannot be put into the shell's control groups: {error}.") from error
    if select.select([pidfd], [], [], 0)[0]:
        raise StartupFailed(f"process {pid} of the sandbox ended while it was made ready.")


@functools.cache
def _hierarchies() -> dict[str, Path]:
    """Once: they are mounted when a node starts, and on a busy one there are thousands of other mounts to read."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text())


def parse_mounts(text: str) -> dict[str, Path]:
    """``/proc/PID/mountinfo``: where each hierarchy of control groups is, under its name in ``/proc/PID/cgroup``."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        mount, _, kind = line.partition(" - ")
        filesystem, _, options = kind.split(" ", 2)
        if filesystem in ("cgroup", "cgroup2"):
            words = [word for word in options.split(",") if word not in _CGROUP_OPTIONS]
            found.setdefault(",".join(words) if filesystem == "cgroup" else "", Path(mount.split()[4]))
    return found


def _numbers(text: str) -> frozenset[int]:
    return frozenset(map(int, text.split()))


def _union(status: Mapping[str, str]) -> int:
    union = 0
    for name in _CAPABILITY_SETS:
        union |= int(status[name], 16)
    return union


def _same(kind: str, fork: View, shell: View) -> None:
    if fork.namespaces[kind] != shell.namespaces[kind]:
        raise StartupFailed(f"the zygote's fork is not in its shell's {kind} namespace.")


def _apart(kind: str, fork: View, *others: View) -> None:
    if any(fork.namespaces[kind] == other.namespaces[kind] for other in others):
        raise StartupFailed(f"the zygote's fork has no {kind} namespace of its own.")
