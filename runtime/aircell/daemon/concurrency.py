"""Small asyncio helpers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def race(work: Coroutine[Any, Any, T], *interruptions: Coroutine[Any, Any, NoReturn]) -> T:
    """What ``work`` returns or raises, unless one of ``interruptions`` has raised by then: then work is cancelled and
    that is raised. Whatever happens, nothing is running any more when this returns."""
    main = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(interruption) for interruption in interruptions]
    try:
        await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
        return next((other for other in others if other.done()), main).result()
    finally:
        await end(main, *others)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what has not finished, and waits until all of it has."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def settle(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns or raises. When this is cancelled, ``work`` is not: it is waited for first.

    For what must not be left half done, such as a call that an engine would go on with after we hung up.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def together(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """What the two return, which run at the same time. When one raises, or this is cancelled, neither is left half
    done: see :func:`settle`."""
    both = asyncio.ensure_future(settle(first)), asyncio.ensure_future(settle(second))
    try:
        return await asyncio.gather(*both)
    finally:
        await asyncio.wait(both)


async def readable(fd: int) -> None:
    """Returns once ``fd`` has something to read, or its end of file. The caller keeps it open meanwhile."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, complete, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def complete(future: asyncio.Future[None]) -> None:
    """Completes it, unless it is complete already."""
    if not future.done():
        future.set_result(None)


async def never() -> NoReturn:
    """Waits until it is cancelled."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody holds was completed")
