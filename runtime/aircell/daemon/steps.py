"""The steps of a launch, from its events: what each state of ``docs/protocol.md`` was spent on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from aircell.status import State

_BEGUN_BY = {
    State.QUEUED.value: "queue",
    State.PULLING.value: "pull",
    State.BUILDING.value: "build",
    State.CREATING.value: "create",
    State.STARTING.value: "start",
    State.RUNNING.value: "job",
}
_SINCE = {"connected": "import", "ready": "hand-over", "ended": "removal"}
"""By what an event tells under ``times``, besides its own."""


@dataclass(frozen=True)
class Step:
    """A part of a launch. Times are in seconds since the epoch."""

    name: str
    start: float
    end: float


def steps(events: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Without gaps, from the first event to the last; a clock that was put back makes none shorter than nothing.

    A launch that was served by a sandbox which was ready has one step before its job: ``claim``.
    """
    marks: list[tuple[str, float]] = []
    for name, at in _marks(events):
        at = max([at, *(before for _, before in marks[-1:])])
        if not marks or marks[-1][0] != name:
            marks.append((name, at))
    return [Step(name, start, end) for (name, start), (_, end) in pairwise(marks)]


def _marks(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """When each step began, the last of them being none."""
    claimed = any(event.get("ready") for event in events)
    for event in events:
        state = event["event"]
        if not (claimed and state == State.RUNNING):  # or its agent had connected before it was asked for
            for fact, name in _SINCE.items():
                if fact in event.get("times", {}):
                    yield name, event["times"][fact]
        name = _BEGUN_BY.get(state, "")
        yield "claim" if claimed and name == "queue" else name, event["at"]
