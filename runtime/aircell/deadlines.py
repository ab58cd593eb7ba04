"""Deadlines in asyncio code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """What ``work`` returns or raises; asyncio.TimeoutError when it has not by then, and nothing of it runs any more.

    None is no deadline.

    In place of ``asyncio.wait_for``, which before Python 3.12 loses a cancellation that comes just as the work is done
    (github.com/python/cpython/issues/86296): a loop that was cancelled so goes on for ever. To be replaced by
    ``asyncio.timeout`` once 3.12 is the oldest Python that aircelld runs on.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
