"""Hand-over: from the request to the first line of Airflow's runner in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import jobs
from tests.bench.kinds import KINDS
from tests.bench.lab import Lab
from tests.bench.results import Series


def measure(lab: Lab) -> Iterator[tuple[str, Series]]:
    """One job after the other, on each kind in turn; where sandboxes are made beforehand, once they are."""
    lab.engine.load("task")
    warm = lab.samples(full=500, quick=12)
    cold = lab.samples(full=20, quick=3)
    wanted = jobs.request("task")
    taken: dict[str, list[float]] = {kind: [] for kind in lab.kinds}
    for kind in lab.kinds:
        jobs.first_line(lab.node(kind).client, wanted)  # the shape becomes known
    for number in range(warm):
        for kind in lab.kinds:
            if KINDS[kind].warm or number < cold:
                taken[kind].append(_sample(lab, kind, wanted))
    yield "request to first line", Series(unit="ms", samples=taken)


def _sample(lab: Lab, kind: str, wanted: dict[str, object]) -> float:
    lab.settle(kind)
    node = lab.node(kind)
    milliseconds, sandbox = jobs.first_line(node.client, wanted)
    lab.served(kind, node.answer("inspect", sandbox=sandbox)["sandbox"])
    return milliseconds
