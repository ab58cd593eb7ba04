"""Many sandboxes, one after another and at once, of which nothing is left: what the engine was before, it is again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.contract.engines import Running
from tests.contract.footprint import CGROUPS, Footprint
from tests.contract.harness import Harness

pytestmark = pytest.mark.asyncio(loop_scope="session")

GONE_SECONDS = 60.0
"""In which an engine must have thrown away what it removes in the background, such as snapshots."""
A_FEW = 12
"""Descriptors that engines keep for themselves, whatever the number of sandboxes."""


@pytest.fixture
def parent() -> Iterator[str]:
    """A control group for this test alone."""
    yield "/aircell-leaks"
    for path in (CGROUPS / "aircell-leaks", *CGROUPS.glob("*/aircell-leaks")):
        if path.exists():
            path.rmdir()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sequential", "concurrent"), [(3, 6), pytest.param(200, 50, marks=pytest.mark.engines)], ids=["few", "many"]
)
async def test_nothing_is_left(
    harness: Harness, engine: Running, parent: str, sequential: int, concurrent: int
) -> None:
    """No container, snapshot, network namespace, address, control group, shim, mount, descriptor or folder."""
    await lives(harness, parent, 1, 2)  # what an engine makes once, at its first sandboxes, is there now
    before, descriptors = engine.footprint(parent), engine.descriptors()
    await lives(harness, parent, sequential, concurrent)
    end = time.monotonic() + GONE_SECONDS
    while (left := grown(before, engine.footprint(parent))) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    assert left == {}
    assert engine.descriptors() <= descriptors + A_FEW
    assert await harness.backend.sandboxes({}) == []


async def lives(harness: Harness, parent: str, sequential: int, concurrent: int) -> None:
    """So many, first one after another, then at once."""
    for _ in range(sequential):
        await live(harness, parent)
    await asyncio.gather(*(live(harness, parent) for _ in range(concurrent)))


async def live(harness: Harness, parent: str) -> None:
    """A whole life, with a network namespace, an address and a log."""
    sandbox = await harness.start(["echo", "x"], network="pod", cgroup_parent=parent)
    outcome = await harness.finish(sandbox)
    assert (outcome.exit.code, outcome.log) == (0, "x\n")
    await harness.backend.remove(sandbox)


def grown(before: Footprint, after: Footprint) -> dict[str, list[str]]:
    """What there is now and was not before, by kind."""
    return {kind: sorted(after[kind] - before[kind]) for kind in before if after[kind] - before[kind]}
