"""What aircelld reads of, and does to, the processes that are agents, by way of /proc and the control groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def memory(pid: int) -> int:
    """The share of the node's memory in bytes that a process and its children take: PSS, proc(5).

    Raises OSError when one of them has ended.
    """
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
    ]
    return sum(_pss(each) for each in (pid, *children))


def _pss(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


@contextlib.contextmanager
def background(pid: int) -> Iterator[None]:
    """Lets the control group of the process have CPU time, for a while, only as far as others leave it some.

    A nice value would not do: it orders processes within a group, and each sandbox has a group of its own. Where the
    group cannot be found, nothing happens.
    """
    changed: list[tuple[Path, str]] = []
    for file, least in _cpu_weights(pid):
        with contextlib.suppress(OSError):
            before = file.read_text()
            file.write_text(least)
            changed.append((file, before))
    try:
        yield
    finally:
        for file, before in changed:
            with contextlib.suppress(OSError):  # the sandbox has ended, and its group with it
                file.write_text(before)


def _cpu_weights(pid: int) -> Iterator[tuple[Path, str]]:
    """Files with the weight of the process's control group, and its least value; cgroups(7)."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if group == "/":
                continue
            if "cpu" in controllers.split(","):
                yield root / controllers / group.lstrip("/") / "cpu.shares", "2"
            elif not controllers:
                yield root / group.lstrip("/") / "cpu.weight", "1"
