"""Waiting for the end of a container's first process without asking the engine again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from aircell.backends.cri.cgroups import kill_all, memory_group, oom_kills


class ContainerProcess:
    """The first process of a running container, seen by its pidfd. To be closed by ``with``."""

    def __init__(self, pidfd: int, memory: Path | None) -> None:
        self._pidfd = pidfd
        self._memory = memory

    @classmethod
    def open(cls, pid: int, container: str, cgroup_root: Path) -> ContainerProcess | None:
        """None when the process has ended, or cannot be seen from here (another PID namespace).

        So it is for 0, which containerd 2 names for a container that it still calls running while its process ends.
        A number may have gone to another process meanwhile: this one's control groups bear the container's id.
        """
        if pid == 0:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            groups = ""
        if container not in groups:
            os.close(pidfd)
            return None
        return cls(pidfd, memory_group(cgroup_root, pid))

    async def ended(self) -> bool:
        """Returns when the process has ended: whether the kernel killed anything in its memory group.

        The engine removes the group within milliseconds, so that is read first; the engine's own report of it may
        come too late or, for a child of the container, not at all.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()

        def finish() -> None:
            loop.remove_reader(self._pidfd)
            if not done.done():
                done.set_result(self._memory is not None and oom_kills(self._memory) > 0)

        loop.add_reader(self._pidfd, finish)
        try:
            return await done
        finally:
            loop.remove_reader(self._pidfd)

    def kill_rest(self) -> None:
        """Kills whatever is in its groups. Of any other container the kernel leaves nothing once the first process has
        ended; a fork of a zygote is in a PID namespace of its own, and should end by itself when its shell does."""
        if self._memory is not None:
            with contextlib.suppress(OSError):  # the group has gone, or is just going (ENODEV)
                kill_all(self._memory)

    def __enter__(self) -> ContainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)
