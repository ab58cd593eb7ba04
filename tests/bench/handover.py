"""Hand-over: from the request to the first line of Airflow's runner in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import jobs
from tests.bench.kinds import KINDS
from tests.bench.lab import Lab
from tests.bench.results import Series
from tests.bench.steps import Steps


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """One job after the other, on each kind in turn; where sandboxes are made beforehand, once they are."""
    lab.engine.load("task")
    warm = lab.samples(full=500, quick=12)
    cold = lab.samples(full=500, quick=3)
    wanted = jobs.request("task")
    taken: dict[str, list[float]] = {kind: [] for kind in lab.kinds}
    steps = {kind: Steps() for kind in lab.kinds}
    for kind in lab.kinds:
        jobs.first_line(lab.node(kind).client, wanted)  # the shape becomes known
    for number in range(warm):
        for kind in lab.kinds:
            if not KINDS[kind].warm and number >= cold:
                continue
            lab.settle()
            node = lab.node(kind)
            launch = jobs.first_line(node.client, wanted)
            found = node.inspect(launch.sandbox)
            lab.served(kind, found)
            taken[kind].append(launch.milliseconds)
            steps[kind].note(launch, found["events"])
    yield "request to first line", Series(unit="ms", samples=taken)
    for kind in lab.kinds:
        yield f"steps of {kind}", Series(unit="ms", samples=steps[kind].samples)
