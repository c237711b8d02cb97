"""Awaiting with a limit that costs next to nothing, and awaiting to the end in spite of a cancellation."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, TypeVar
from weakref import ref

T = TypeVar("T")

_NEVER: Final = float("inf")
_LONGEST: Final = 1.0  # seconds of a timer, which stays in the loop when nothing waits any more


class TimeLimit:
    """Cancels the tasks of a loop that wait for too long, by one timer for all: one for each would cost more than most waits.

    `start` before the wait, `stop` after it, whatever came of it; `stop` tells whether the time ran out.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._waiting: Final[dict[asyncio.Task[Any], tuple[float, int]]] = {}
        self._expired: Final[set[asyncio.Task[Any]]] = set()
        self._next = _NEVER

    def start(self, seconds: float) -> asyncio.Task[Any] | None:
        """Let the current task wait for at most `seconds`; return that task, or None if it is one of another loop."""
        if (task := current_task(self.loop)) is not None:
            deadline = monotonic() + seconds
            self._waiting[task] = deadline, task.cancelling()
            if deadline < self._next:
                self._watch(seconds, deadline - seconds)
        return task

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """End the wait; tell whether the limit alone cancelled it, so that a `CancelledError` means that the time ran out."""
        waited = self._waiting.pop(task, None)
        if waited is None or task not in self._expired:
            return False
        self._expired.remove(task)
        return task.uncancel() <= waited[1]  # even where the store made another error of it, or an answer

    def _watch(self, seconds: float, now: float) -> None:
        seconds = min(seconds, _LONGEST)
        self._next = now + seconds
        self.loop.call_later(seconds, self._look, self._next)

    def _look(self, when: float) -> None:
        if when == self._next:  # otherwise an earlier one took its place, and will be followed by others
            self._next = _NEVER
        now = monotonic()
        for task, (deadline, _) in self._waiting.items():
            if deadline <= now and task not in self._expired:
                self._expired.add(task)
                task.cancel()
        left = min((self._waiting[task][0] for task in self._waiting.keys() - self._expired), default=_NEVER)
        if left < self._next:
            self._watch(left - now, now)


_latest: ref[TimeLimit] | None = None  # weak, or it would keep its loop alive


def time_limit() -> TimeLimit:
    """Return the time limit of the running loop."""
    global _latest
    loop, limit = asyncio.get_running_loop(), _latest() if _latest else None
    if limit is None or limit.loop is not loop:
        limit = TimeLimit(loop)
        _latest = ref(limit)
    return limit


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
