"""Sandboxes that live for as long as somebody measures something beside them, or in them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from aircell.client import Sandbox
from tests.support.node import Node

_AT_ONCE = 8
"""Launches: as many as a busy node has."""
_START_SECONDS = 120.0


@contextlib.contextmanager
def live(node: Node, count: int, wanted: dict[str, Any]) -> Iterator[list[str]]:
    """So many sandboxes whose jobs run: their ids. ``wanted`` is a launch whose job does not end by itself."""
    _allow_descriptors()
    with contextlib.ExitStack() as stack:
        ids: list[str] = []
        while len(ids) < count:
            batch = [node.client.launch(wanted) for _ in range(min(_AT_ONCE, count - len(ids)))]
            for sandbox in batch:
                stack.enter_context(sandbox)
                _wait_until_it_runs(sandbox)
                ids.append(sandbox.id)
        yield ids
    node.wait_until(lambda: not {each["id"] for each in node.ps()} & set(ids), "they have ended", 10 + count)


def proportional(process: psutil.Process) -> float:
    """MiB of a process: shared pages count by their share, see PSS in proc_pid_smaps(5)."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {process.pid} has no Pss")


def _wait_until_it_runs(sandbox: Sandbox) -> None:
    while sandbox.facts is None and not sandbox.finished:
        sandbox.poll(_START_SECONDS)
        sandbox.read_lifeline()
        sandbox.read_events()
    if sandbox.error:
        raise sandbox.error


def _allow_descriptors() -> None:
    """Each handle has six."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
