"""What aircelld's configuration says under ``backends: cri:``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aircell.spec import AbsolutePath, Model

Seconds = Annotated[float, Field(gt=0)]


class CriConfig(Model):
    """One CRI engine and how patient to be with it."""

    socket: AbsolutePath = "/run/containerd/containerd.sock"
    cgroup_parent: str = "/aircell"
    """Where sandboxes go whose spec names no parent: a path, or a slice where systemd manages control groups."""
    cgroup_root: AbsolutePath = "/sys/fs/cgroup"
    """Where this node mounts its control groups, as aircelld sees it."""
    ctr: str = "ctr"
    """containerd's own client, which takes up images that no registry has: a name on PATH or a path."""
    call_timeout: Seconds = 15.0
    """For calls that only ask."""
    make_timeout: Seconds = 120.0
    """For calls that make, start, stop or remove something."""
    pull_stall_timeout: Seconds = 300.0
    """For a pull of which nothing more comes."""
    pull_timeout: Seconds = 3600.0
