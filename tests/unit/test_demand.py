"""How many sandboxes are kept ready."""

from __future__ import annotations

from aircell.daemon.config import WarmSettings
from aircell.daemon.demand import Demand


def demand(**settings: float) -> Demand:
    return Demand(WarmSettings.model_validate({"max": 5, "idle_ttl": 100, **settings}), last=0.0)


def test_as_many_as_were_wanted_while_one_is_made() -> None:
    wanted = demand()
    for now in (1.0, 1.5, 2.0, 30.0, 60.0):
        wanted.note(now, refill_seconds=3.0)
    assert wanted.target(60.0) == 3


def test_one_after_the_other_needs_one() -> None:
    wanted = demand()
    for now in range(0, 50, 5):
        wanted.note(now, refill_seconds=3.0)
    assert wanted.target(50.0) == 1


def test_bounds() -> None:
    wanted = demand(min=2)
    assert wanted.target(1.0) == 2
    for _ in range(20):
        wanted.note(1.0, refill_seconds=3.0)
    assert wanted.target(1.0) == 5


def test_what_was_wanted_long_ago_is_forgotten_first_the_many_then_all() -> None:
    wanted = demand()
    for now in (1.0, 1.0, 1.0, 90.0):
        wanted.note(now, refill_seconds=3.0)
    assert wanted.target(90.0) == 3
    assert wanted.target(102.0) == 1
    assert not wanted.over(102.0)
    assert wanted.target(191.0) == 0
    assert wanted.over(191.0)


def test_a_single_job_has_a_head_start_and_one_of_many_has_none() -> None:
    wanted = demand()
    wanted.note(10.0, refill_seconds=3.0)
    assert wanted.head_start(10.0) > wanted.head_start(10.1) > 0
    assert wanted.head_start(11.0) == 0
    wanted.note(11.0, refill_seconds=3.0)
    assert wanted.head_start(11.0) == 0
