"""Awaiting with a limit that costs nothing when nothing waits, and awaiting to the end in spite of a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def limited(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Await `work` for at most `seconds`. Work that never waits, as on a store in memory, needs no timer."""
    try:
        awaited = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # typeshed can't tell what a coroutine returns
    async with asyncio.timeout(seconds):
        return await _resumed(work, awaited)


@coroutine
def _resumed(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Go on with `work`, which waits for `awaited`."""
    while True:
        try:
            try:
                answer = yield awaited
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(answer)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # as above


async def finished(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until `future` is done, whatever happens to the caller; return the caller's cancellation, if there was one."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
    return cancelled


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, even when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    await finished(task)
    return task.result()
