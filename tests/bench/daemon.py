"""aircelld itself: its memory and its idle CPU time, and whether its hand-over slows down as the node fills up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil

from tests.bench import jobs, many_images
from tests.bench.lab import Lab
from tests.bench.live import live
from tests.bench.results import Series
from tests.bench.steps import Steps
from tests.support.jobs import request
from tests.support.node import Node

_WINDOW = 5.0
"""Seconds over which CPU time is counted."""
_IMAGES = 300


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """A fresh aircelld of the kind with the fastest hand-over, with more and more sandboxes around it."""
    kind = lab.kinds[-1]
    lab.engine.load("base")
    node = lab.fresh_node(kind)
    memory: dict[str, list[float]] = {}
    idle: dict[str, list[float]] = {}
    handover: dict[str, list[float]] = {}
    steps: dict[str, Steps] = {}
    with contextlib.ExitStack() as stack:
        there = 0
        for count in (0, 50, 200) if lab.effort == "full" else (0, 20):
            stack.enter_context(live(node, count - there, request("sleep", "3600")))
            there = count
            jobs.first_line(node.client, jobs.request("base"))
            lab.settle()
            idle[f"{count} live"] = [_idle(node) for _ in range(lab.samples(full=6, quick=1))]
            memory[f"{count} live"] = [psutil.Process(node.pid).memory_info().rss / 2**20]
            row = f"{max(count, 1)} live"
            steps[row] = Steps()
            handover[row] = _handovers(lab, node, steps[row])
    yield "resident memory", Series(unit="MiB", samples=memory)
    yield "CPU when idle", Series(unit="% of a CPU", samples=idle)
    yield "hand-over", Series(unit="ms", samples=handover, base="1 live")
    for row, taken in steps.items():
        yield f"steps of a hand-over, {row}", Series(unit="ms", samples=taken.samples)
    yield "hand-over by known images", Series(unit="ms", samples=_by_images(lab, node), base="as they are")


def _idle(node: Node) -> float:
    process = psutil.Process(node.pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(_WINDOW)
    return 100 * (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)


def _handovers(lab: Lab, node: Node, steps: Steps) -> list[float]:
    taken = []
    for _ in range(lab.samples(full=100, quick=10)):
        lab.settle()
        launch = jobs.first_line(node.client, jobs.request("base"))
        taken.append(launch.milliseconds)
        steps.note(launch, node.history(launch.sandbox))
    return taken


def _by_images(lab: Lab, node: Node) -> dict[str, list[float]]:
    taken = {"as they are": _handovers(lab, node, Steps())}
    names = [f"localhost/aircell/bench:{number}" for number in range(_IMAGES)]
    archive = lab.folder() / "images.tar"
    many_images.write(archive, names)
    lab.engine.ctr("images", "import", str(archive))
    node.wait_until(lambda: set(names) <= node.images(), "they are known", 60)
    taken[f"{_IMAGES} more"] = _handovers(lab, node, Steps())
    lab.engine.ctr("images", "rm", *names)
    return taken
