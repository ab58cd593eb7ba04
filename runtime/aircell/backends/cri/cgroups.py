"""Control groups, where the CRI leaves something to do: pids on cgroup v1, and evidence of the OOM killer.

Sources: the kernel's ``Documentation/admin-guide/cgroup-v1/{pids,memory}.rst`` and ``cgroup-v2.rst``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from aircell.errors import EngineError

logger = logging.getLogger(__name__)

_TRIES = 50
_PAUSE = 0.02


def is_v2(root: Path) -> bool:
    """Whether ``root`` is a cgroup v2 hierarchy; in a hybrid set-up the limits are v1's, so that is not one."""
    return (root / "cgroup.controllers").exists()


def limit_pids(root: Path, group: str, pids: int) -> None:
    """Sets the limit of a group of cgroup v1, made if need be. Raises EngineError when that cannot be done."""
    hierarchy = root / "pids"
    file = hierarchy / group.lstrip("/") / "pids.max"
    try:
        hierarchy.stat()  # or a folder that is no control group would be made
        file.parent.mkdir(parents=True, exist_ok=True)  # of a shell, whose pod is in another
        file.write_text(str(pids))
    except OSError as error:
        raise EngineError(
            f"the limit of {pids} processes cannot be set: {error}.",
            hint="Check that aircelld sees the node's control groups (cgroup_root) and that the engine manages them "
            "itself (cgroupfs, not systemd), or set `resources.pids: null`.",
        ) from error


async def remove_group(root: Path, group: str) -> None:
    """Removes a group of cgroup v1, with all below it, from every hierarchy; what still runs there is killed.

    Raises EngineError when it is in use even so: somebody goes on starting processes in it.
    """
    for _ in range(_TRIES):
        in_use = _try_to_remove(root, group)
        if not in_use:
            return
        await asyncio.sleep(_PAUSE)
    raise EngineError(f"the control group cannot be removed: {in_use}.", hint="See what runs in it.")


def _try_to_remove(root: Path, group: str) -> str:
    """What is still in use, because whatever was killed needs a moment to end; empty when nothing is."""
    in_use = ""
    for hierarchy in root.iterdir():
        for folder in map(Path, _bottom_up(f"{hierarchy}/{group.lstrip('/')}")):
            try:
                if outlived := kill_all(folder):
                    logger.warning("killed the processes %s, which outlived their sandbox in %s", outlived, folder)
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                in_use = f"{folder}: {error.strerror}"
    return in_use


def _bottom_up(group: str) -> Iterator[str]:
    """Control groups from the lowest to this; nothing when there is none."""
    return (folder for folder, _, _ in os.walk(group, topdown=False))


def kill_all(folder: Path) -> list[int]:
    """Kills every process of a group, and returns their pids. Raises OSError when there is no such group."""
    pids = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def memory_group(root: Path, pid: int) -> Path | None:
    """The memory group of a process as a folder, or None when it cannot be seen from here."""
    try:
        return parse_memory_group(root, Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None


def parse_memory_group(root: Path, text: str) -> Path | None:
    """The same from the text of ``/proc/PID/cgroup``, see cgroups(7)."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return root / "memory" / path.lstrip("/")
        if not controllers and is_v2(root):
            return root / path.lstrip("/")
    return None


def oom_kills(group: Path) -> int:
    """How many processes of the group the kernel has killed for memory; 0 once the group is gone."""
    for name in ("memory.events", "memory.oom_control"):
        try:
            text = (group / name).read_text()
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0
