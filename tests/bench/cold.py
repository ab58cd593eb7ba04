"""Cold start: everything from the request to the first line, beside the same steps made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.bench import jobs
from tests.bench.floor import RawCri, Runc, root_filesystem
from tests.bench.lab import Lab
from tests.bench.results import Series
from tests.support.images import reference

STEPS: Mapping[tuple[str, str], str] = {
    ("queued", "creating"): "accepted and checked",
    ("creating", "starting"): "pod and container made",
    ("starting", "running"): "started, imported, handed over",
}
"""Between two events of aircelld."""


def interpreter(lab: Lab) -> Iterator[tuple[str, Series]]:
    """An image that is a bare interpreter: nothing hides what aircelld adds."""
    return _against_floor(lab, "base", lab.samples(full=100, quick=15))


def airflow(lab: Lab) -> Iterator[tuple[str, Series]]:
    """The image that tasks have, with Airflow's imports."""
    return _against_floor(lab, "task", lab.samples(full=20, quick=3))


def _against_floor(lab: Lab, image: str, count: int) -> Iterator[tuple[str, Series]]:
    node, root = lab.engine, lab.folder()
    node.load(image)
    wanted = jobs.request(image)
    raw = RawCri(node, wanted, root)
    taken: dict[str, list[float]] = {"raw CRI": [], "cold": [], "runc": []}
    steps: dict[str, list[float]] = {name: [] for name in STEPS.values()}
    with root_filesystem(node, reference(image), root / "rootfs") as rootfs, raw.container() as description:
        runc = Runc(description, jobs.runner(image), rootfs, root)
        for _ in range(count):
            taken["raw CRI"].append(raw.sample())
            milliseconds, sandbox = jobs.first_line(node.client, wanted)
            taken["cold"].append(milliseconds)
            taken["runc"].append(runc.sample())
            found = node.answer("inspect", sandbox=sandbox)["sandbox"]
            lab.served("cold", found)
            for name, seconds in _durations(found["events"]):
                steps[name].append(seconds * 1000)
    yield "request to first line", Series(unit="ms", samples=taken, base="raw CRI")
    yield "steps of cold", Series(unit="ms", samples=steps)


def _durations(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for before, after in pairwise(events):
        if name := STEPS.get((before["event"], after["event"])):
            yield name, after["at"] - before["at"]
