"""Where the time of a launch goes, by the events that aircelld keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.bench.jobs import Launch

STEPS: Mapping[tuple[str, str], str] = {
    ("asked", "queued"): "accepted",
    ("queued", "creating"): "checked",
    ("creating", "starting"): "pod and container made",
    ("starting", "running"): "started, imported, handed over",
    ("queued", "running"): "claimed and handed over",
    ("running", "first line"): "from there to the first line",
}
"""What lies between two events, the client's request and the job's first line among them. The last may be negative:
aircelld hears from the agent that the job runs when it runs."""


class Steps:
    """Milliseconds by step, of launches that went the same way."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def note(self, launch: Launch, events: Sequence[Mapping[str, Any]]) -> None:
        """``events`` are those of ``inspect``, of a launch whose job ran."""
        before_the_end = [(str(event["event"]), float(event["at"])) for event in events if event["event"] != "exited"]
        first_line = launch.asked + launch.milliseconds / 1000
        times = [("asked", launch.asked), *before_the_end, ("first line", first_line)]
        for (before, begin), (after, end) in pairwise(times):
            if step := STEPS.get((before, after)):
                self.samples.setdefault(step, []).append((end - begin) * 1000)
