"""What aircelld reads of, and does to, the processes that are agents, by way of /proc and the control groups."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

Priority: TypeAlias = Literal["low", "ordinary", "most"]
"""Where there is not CPU time enough: an eighth of what others get, so much as they do, or nearly all. Not less than an
eighth, or nothing would be ready on a node whose tasks compute for hours."""
_WEIGHTS: Mapping[Priority, Mapping[str, str]] = {
    "low": {"cpu.shares": "128", "cpu.weight": "12"},
    "ordinary": {},
    "most": {"cpu.shares": "262144", "cpu.weight": "10000"},
}
"""By the files of cgroup v1 and v2, whose ordinary values are 1024 and 100; the bounds are in the kernel's
``sched-design-CFS.rst`` and ``cgroup-v2.rst``."""


def memory(pid: int) -> int:
    """The share of the node's memory in bytes that a process and its children take: PSS, proc(5).

    Raises OSError when one of them has ended.
    """
    return sum(_rollup(each, "Pss:") for each in _with_children(pid))


def private_memory(pid: int) -> int:
    """Bytes that a process and its children have each for themselves: what forks add to where they came from.

    Raises OSError when one of them has ended.
    """
    return sum(_rollup(each, "Private_Clean:", "Private_Dirty:") for each in _with_children(pid))


def resident_set(pid: int) -> int:
    """Bytes of a process that are in memory, shared or not; cheap to ask. Raises OSError when it has ended."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _with_children(pid: int) -> tuple[int, ...]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return (pid, *(int(child) for file in files for child in file.read_text().split()))


def _rollup(pid: int, *fields: str) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith(fields))


@contextlib.contextmanager
def prioritized(pid: int, sandbox: str, priority: Priority) -> Iterator[None]:
    """Gives the control groups of the sandbox, of which this is a process, that weight for a while.

    A nice value would not do: it orders processes within a group, and each sandbox has a group of its own. Where the
    groups cannot be found, nothing happens.
    """
    changed: list[tuple[Path, str]] = []
    for group in _cpu_groups(pid, sandbox):
        for name, weight in _WEIGHTS[priority].items():
            with contextlib.suppress(OSError):
                before = (group / name).read_text()
                (group / name).write_text(weight)
                changed.append((group / name, before))
    try:
        yield
    finally:
        for file, before in changed:
            with contextlib.suppress(OSError):  # the sandbox has ended, and its group with it
                file.write_text(before)


def _cpu_groups(pid: int, sandbox: str) -> Iterator[Path]:
    """Folders of the control group of the process and, where that is in one of the sandbox's own, of this: there it is
    what competes with other sandboxes. See cgroups(7)."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if group == "/":
                continue
            if not controllers or "cpu" in controllers.split(","):
                own = root / controllers / group.lstrip("/")
                yield from (own, own.parent) if own.parent.name == sandbox else (own,)
