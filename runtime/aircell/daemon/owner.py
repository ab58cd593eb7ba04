"""The process that asked for a sandbox, followed by pidfd: pids are used again, pidfds are not."""

from __future__ import annotations

import os
from pathlib import Path

from aircell.daemon.concurrency import never, readable
from aircell.spec import Model


class Owner(Model):
    """A worker, as the kernel describes the other end of its connection (SO_PEERCRED, unix(7))."""

    pid: int = 0
    """0 when the worker is in a PID namespace that this node's aircelld cannot see into."""
    uid: int = -1
    started: int = 0
    """Clock ticks after boot at which it started: with the pid, it names a process for good."""

    @classmethod
    def of(cls, pid: int, uid: int) -> Owner:
        """The owner with that pid right now."""
        return cls(pid=pid, uid=uid, started=_start_time(pid))

    async def gone(self) -> None:
        """Returns once the process has ended; never for one that cannot be seen."""
        if not self.pid:
            await never()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if _start_time(self.pid) == self.started:
                await readable(pidfd)
        finally:
            os.close(pidfd)


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, proc(5); 0 when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[19])
