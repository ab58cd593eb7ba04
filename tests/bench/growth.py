"""Whether anything of aircelld grows with the number of sandboxes that it has seen off."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.bench import jobs
from tests.bench.lab import Lab
from tests.bench.results import Series
from tests.support.node import Node

_AT_ONCE = 4
_PARTS = 10
"""After the first of them aircelld has what it always keeps, such as the last that ended."""
_FIRST = f"1/{_PARTS}"
_FEWEST = 20
"""Launches after which its pool is as large as it gets."""


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """Launch after launch on a fresh aircelld of the kind with the fastest hand-over, a few at a time."""
    lab.engine.load("base")
    kind = lab.kinds[-1]
    node = lab.fresh_node(kind)
    count = lab.samples(full=5000, quick=40)
    memory: dict[str, list[float]] = {}
    descriptors: dict[str, list[float]] = {}
    process = psutil.Process(node.pid)
    _launch(node, _FEWEST)
    for part in range(1, _PARTS + 1):
        _launch(node, count // _PARTS)
        lab.settle()
        after = f"{part}/{_PARTS}"
        memory[after] = [process.memory_info().rss / 2**20]
        descriptors[after] = [process.num_fds()]
    yield "resident memory", Series(unit="MiB", samples=memory, base=_FIRST)
    yield "descriptors", Series(unit="", samples=descriptors, base=_FIRST)


def _launch(node: Node, count: int) -> None:
    wanted = jobs.request("base")
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda _: jobs.first_line(node.client, wanted), range(count)))
    node.wait_until(lambda: not node.ps(), "all have ended", 60)
