"""What a launch's time went on, by its events, and that spans of it cost nothing where nobody wants them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from aircell.daemon.steps import Step, steps


def event(state: str, at: float, **facts: Any) -> dict[str, Any]:
    return {"event": state, "at": at, **facts}


COLD = [
    event("queued", 0.0),
    event("pulling", 1.0, done=0),
    event("pulling", 2.0, done=5),
    event("creating", 3.0),
    event("starting", 4.0),
    event("running", 7.0, kind="cold", ready=False, times={"connected": 5.0, "ready": 6.0}),
    event("exited", 9.0, times={"ended": 8.0}),
]
WARM = [
    event("queued", 10.0),
    event("running", 11.0, kind="warm", ready=True, times={"connected": 1.0, "ready": 2.0}),
    event("exited", 13.0, times={"ended": 12.0}),
]
FAILED = [event("queued", 0.0), event("creating", 1.0), event("failed", 3.0, times={"ended": 2.0})]
NO_FORK = [
    event("queued", 0.0),
    event("creating", 1.0),
    event("starting", 2.0),
    event("creating", 3.0),
    event("starting", 4.0),
    event("failed", 5.0, times={"ended": 5.0}),
]
PUT_BACK = [event("queued", 5.0), event("creating", 3.0), event("starting", 4.0), event("failed", 6.0)]


@pytest.mark.parametrize(
    ("events", "names"),
    [
        (COLD, "queue 0 pull 1 create 3 start 4 import 5 hand-over 6 job 7 removal 8 9"),
        (WARM, "claim 10 job 11 removal 12 13"),
        (FAILED, "queue 0 create 1 removal 2 3"),
        (NO_FORK, "queue 0 create 1 start 2 create 3 start 4 removal 5 5"),
        (PUT_BACK, "queue 5 create 5 start 5 6"),
    ],
)
def test_steps_follow_each_other_without_gaps(events: list[dict[str, Any]], names: str) -> None:
    found = steps(events)
    assert " ".join(f"{step.name} {step.start:g}" for step in found) + f" {found[-1].end:g}" == names
    assert [step.end for step in found[:-1]] == [step.start for step in found[1:]]


def test_a_step_has_a_beginning_and_an_end() -> None:
    assert steps(WARM)[0] == Step("claim", 10.0, 11.0)


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import sys
import aircell.daemon.main
from aircell.daemon import service, tracing
tracing.start(None, "node").stop()
sys.exit("opentelemetry" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
