"""Awaiting with a limit that costs next to nothing, and awaiting to the end in spite of a cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_NEVER: Final = float("inf")
_LONGEST: Final = 1.0  # seconds of a timer, which stays in the loop when nothing waits any more


class TimeLimit:
    """Cancels the tasks that wait for too long, by one timer for all: one for each would cost more than most waits.

    `start` before the wait, `stop` after it, whatever came of it; `stop` tells whether the time ran out.
    """

    def __init__(self) -> None:
        self._waiting: Final[dict[asyncio.Task[Any], tuple[float, int]]] = {}
        self._expired: Final[set[asyncio.Task[Any]]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = _NEVER  # no handle is kept: it would keep the loop alive

    def start(self, seconds: float) -> asyncio.Task[Any]:
        """Let the current task wait for at most `seconds`."""
        # Before Python 3.12 finding the loop takes a system call, so the one found last is tried first.
        loop = self._loop
        task = (None if loop is None else asyncio.current_task(loop)) or self._task_of_a_new_loop()
        now = time.monotonic()
        self._waiting[task] = now + seconds, task.cancelling()
        if now + seconds < self._next:
            self._watch(now, seconds)
        return task

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """End the wait; tell whether the limit alone cancelled it, so that a `CancelledError` means that the time ran out."""
        _, cancelling = self._waiting.pop(task)
        if task not in self._expired:
            return False
        self._expired.remove(task)
        return task.uncancel() <= cancelling  # even where the store made another error of it, or an answer

    def _task_of_a_new_loop(self) -> asyncio.Task[Any]:
        self._loop, self._next = asyncio.get_running_loop(), _NEVER
        task = asyncio.current_task(self._loop)
        assert task is not None
        return task

    def _watch(self, now: float, seconds: float) -> None:
        seconds = min(seconds, _LONGEST)
        self._next = now + seconds
        asyncio.get_running_loop().call_later(seconds, self._look, self._next)

    def _look(self, when: float) -> None:
        if when == self._next:  # otherwise an earlier one took its place, and will be followed by others
            self._next = _NEVER
        now, loop = time.monotonic(), asyncio.get_running_loop()
        # A loop that was closed may have left tasks behind: nobody will end them any more.
        open_ = [task for task in self._waiting if task not in self._expired and task.get_loop() is loop]
        for task in open_:
            if self._waiting[task][0] <= now:
                self._expired.add(task)
                task.cancel()
        left = min((self._waiting[task][0] for task in open_ if task not in self._expired), default=_NEVER)
        if left < self._next:
            self._watch(now, left - now)


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


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, however often the caller is cancelled meanwhile, and raise that cancellation then."""
    task = asyncio.ensure_future(work)
    cancelled = await finished(task)
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()
