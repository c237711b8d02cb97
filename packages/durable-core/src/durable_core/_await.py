"""Awaiting with a limit that costs nothing when nothing waits, and awaiting to the end in spite of a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


async def limited(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Await `work` for at most `seconds`, and then raise TimeoutError. Work that never waits costs no more than itself."""
    try:
        awaited = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # typeshed can't tell what a coroutine returns
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch()
    task = asyncio.current_task(loop)
    assert task is not None
    cancelling = task.cancelling()
    watch.add(loop, task, seconds)
    try:
        return await _resumed(work, awaited)
    except asyncio.CancelledError as cancelled:
        if watch.expired(task) and task.cancelling() - 1 <= cancelling:
            raise TimeoutError(f"no answer within {seconds:g} s") from cancelled
        raise
    finally:
        if watch.expired(task):  # even where the store made another error of it, or an answer
            task.uncancel()
        del watch.waiting[task]


class _Watch:
    """Cancels the tasks of a loop that wait for too long, by one timer for all: one for each would cost more than the wait."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Task[Any], float] = {}
        self._next: float | None = None  # no handle is kept: it would keep the loop alive

    def add(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seconds: float) -> None:
        deadline = self.waiting[task] = loop.time() + seconds
        if self._next is None or self._next > deadline:
            self._start(loop, deadline)

    def expired(self, task: asyncio.Task[Any]) -> bool:
        return self.waiting[task] == _EXPIRED

    def _start(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._next = when
        loop.call_at(when, self._look, loop, when)

    def _look(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if when != self._next:
            return  # another timer took its place
        self._next = None
        now = loop.time()
        for task, deadline in self.waiting.items():
            if deadline <= now:
                self.waiting[task] = _EXPIRED
                task.cancel()
        open_ = [deadline for deadline in self.waiting.values() if deadline != _EXPIRED]
        if open_:
            self._start(loop, min(open_))


_EXPIRED: Final = float("inf")
_watches: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch]] = WeakKeyDictionary()


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
