"""What engines leave undone about mounts: sources that are missing, and mounts below a read-only one.

containerd makes a folder for a missing source. It and Docker make only the topmost mount of a source read-only: a
volume mounted inside a read-only folder would be writable in the sandbox. (They learnt better with containerd 2.0 and
Docker 25.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from aircell.errors import InvalidSpec
from aircell.spec import Mount

_OCTAL = re.compile(r"\\([0-7]{3})")


def prepare(mounts: Sequence[Mount], sandbox: str) -> list[Mount]:
    """The mounts to ask the engine for. Raises InvalidSpec for a source that does not exist."""
    for mount in mounts:
        if not Path(mount.source).exists():
            raise InvalidSpec(
                f"{mount.source}, which is to be mounted at {mount.target}, does not exist on this node.",
                hint="Correct `mounts`, or aircelld's `path_map` when the worker sees it under another path.",
                sandbox=sandbox,
            )
    return with_read_only_submounts(mounts, mount_points(Path("/proc/self/mountinfo").read_text()))


def mount_points(mountinfo: str) -> list[str]:
    """Every mount point, from the text of ``/proc/PID/mountinfo`` (proc(5)), which writes odd characters in octal."""
    fields = (line.split(" ")[4] for line in mountinfo.splitlines())
    return [_OCTAL.sub(lambda match: chr(int(match[1], 8)), path) for path in fields]


def with_read_only_submounts(mounts: Iterable[Mount], points: Sequence[str]) -> list[Mount]:
    """Each read-only mount, followed by read-only mounts of whatever is mounted below its source."""
    complete: list[Mount] = []
    for mount in mounts:
        complete.append(mount)
        if not mount.read_only:
            continue
        source = Path(mount.source).resolve()
        inside = str(source).rstrip("/") + "/"  # a node has thousands of mounts, and a path takes megabytes for those
        below = {PurePosixPath(point) for point in points if point.startswith(inside)}
        for point in sorted(below - {source}):
            target = PurePosixPath(mount.target) / point.relative_to(source)
            complete.append(Mount(source=str(point), target=str(target)))
    return complete
