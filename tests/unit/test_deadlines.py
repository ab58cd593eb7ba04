"""Deadlines: what comes back, what is cancelled, and that no cancellation is lost."""

from __future__ import annotations

import asyncio

import pytest

from aircell.deadlines import within


async def test_what_is_done_in_time_comes_back() -> None:
    assert await within(10, asyncio.sleep(0, "done")) == "done"


async def test_what_fails_in_time_fails() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(10, fail())


async def test_what_takes_too_long_has_ended_when_that_is_told() -> None:
    ended: list[bool] = []

    async def last() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, last())
    assert ended == [True]


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_just_as_the_work_is_done_is_not_lost(turns: int) -> None:
    event = asyncio.Event()
    task = asyncio.create_task(within(60, event.wait()))
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():  # else it had returned by then
        with pytest.raises(asyncio.CancelledError):
            await task
