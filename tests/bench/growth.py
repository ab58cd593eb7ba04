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
_EARLY = 0.1
"""The part of all launches after which aircelld has what it always keeps, such as the last that ended."""
_FEWEST = 20
"""Launches after which its pool is as large as it gets."""


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """Launch after launch on a fresh aircelld of the kind with the fastest hand-over, a few at a time."""
    lab.engine.load("base")
    kind = lab.kinds[-1]
    node = lab.fresh_node(kind)
    count = lab.samples(full=5000, quick=40)
    early = max(_FEWEST, int(count * _EARLY))
    memory: dict[str, list[float]] = {}
    descriptors: dict[str, list[float]] = {}
    for when, launches in (("early", early), ("late", count - early)):
        _launch(node, launches)
        lab.settle()
        process = psutil.Process(node.pid)
        memory[when] = [process.memory_info().rss / 2**20]
        descriptors[when] = [process.num_fds()]
    yield "resident memory", Series(unit="MiB", samples=memory, base="early")
    yield "descriptors", Series(unit="", samples=descriptors, base="early")


def _launch(node: Node, count: int) -> None:
    wanted = jobs.request("base")
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda _: jobs.first_line(node.client, wanted), range(count)))
    node.wait_until(lambda: not node.ps(), "all have ended", 60)
