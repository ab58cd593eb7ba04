"""Cold start: everything from the request to the first line, beside the same steps made by hand."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import jobs
from tests.bench.floor import RawCri, Runc, root_filesystem
from tests.bench.lab import Lab
from tests.bench.results import Series
from tests.bench.steps import Steps
from tests.support.images import reference


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
    steps = Steps()
    with root_filesystem(node, reference(image), root / "rootfs") as rootfs, raw.container() as description:
        runc = Runc(description, jobs.runner(image), rootfs, root)
        for _ in range(count):
            taken["raw CRI"].append(raw.sample())
            launch = jobs.first_line(node.client, wanted)
            taken["cold"].append(launch.milliseconds)
            taken["runc"].append(runc.sample())
            found = node.inspect(launch.sandbox)
            lab.served("cold", found)
            steps.note(launch, found["events"])
    yield "request to first line", Series(unit="ms", samples=taken, base="raw CRI")
    yield "steps of cold", Series(unit="ms", samples=steps.samples)
