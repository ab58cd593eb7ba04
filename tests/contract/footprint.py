"""What there is of an engine on the node, to be compared before and after: whatever stays of a sandbox is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.node import processes, run

CGROUPS = Path("/sys/fs/cgroup")
ROOT_FILE_SYSTEMS = {"fs", "rootfs", "diff", "merged"}
"""Folders whose content is an image's."""

Footprint = Mapping[str, set[str]]
"""Kind of trace to the traces of that kind."""


def footprint(folder: Path, bridge: str, cgroup_parent: str, *, but: Path | None = None) -> Footprint:
    """Of an engine whose every file is below ``folder``: namespaces, addresses and what is kept of containers too.

    What is in the folder ``but`` does not count.
    """
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {
        "paths": {path for path in _paths(folder) if but is None or not Path(path).is_relative_to(but)},
        "mounts": {point for point in points if Path(point).is_relative_to(folder)},
        "processes": {f"{pid} {' '.join(command)}" for pid, command in _processes(folder)},
        "cgroups": {str(path) for path in _groups(cgroup_parent.strip("/"))},
        "interfaces": {line.split(":")[1] for line in run("ip", "-o", "link", "show", "master", bridge).splitlines()},
    }


def descriptors(folder: Path) -> int:
    """How many are open in the processes of an engine, and in this one."""
    pids = [os.getpid(), *(pid for pid, _ in _processes(folder))]
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def _groups(parent: str) -> Iterator[Path]:
    """Those below a parent, on cgroup v2 and in each hierarchy of v1."""
    yield from CGROUPS.glob(f"{parent}/*/")
    yield from CGROUPS.glob(f"*/{parent}/*/")


def _paths(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ROOT_FILE_SYSTEMS]
        yield from (str(Path(path, name)) for name in (*folders, *files))


def _processes(folder: Path) -> Iterator[tuple[int, list[str]]]:
    for pid, command in processes():
        if any(str(folder) in word for word in command):
            yield pid, command
