"""Awaiting with a cheap time limit, and awaiting to the end despite a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from time import monotonic
from typing import Any, Final, TypeVar
from weakref import ref

import msgspec

from .roots import StoreError

T = TypeVar("T")

_NEVER: Final = float("inf")
_LONGEST: Final = 1.0  # seconds of a timer, which stays in the loop when nothing waits


class Deadline(msgspec.Struct, eq=False, gc=False):
    """The deadline of a task's wait, and how often others had cancelled it before."""

    at: float
    cancelling: int
    expired: bool = False


class TimeLimit:
    """Cancels tasks of a loop that wait too long. One timer serves all, because one for each would cost more than most waits.

    Call `start` before the wait, and `stop` after it, in any case.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._waiting: Final[dict[Deadline, asyncio.Task[Any]]] = {}
        self._next = _NEVER

    def start(self, task: asyncio.Task[Any], seconds: float) -> Deadline:
        """Let a task of the loop wait for at most `seconds`."""
        deadline = monotonic() + seconds
        wait = Deadline(deadline, task.cancelling())
        self._waiting[wait] = task
        if deadline < self._next:
            self._watch(seconds, deadline - seconds)
        return wait

    def stop(self, wait: Deadline) -> bool:
        """End the wait; return True if nobody but this limit cancelled the task meanwhile."""
        task = self._waiting.pop(wait)
        # Undone even if the store turned the cancellation into another error or an answer.
        return (task.uncancel() if wait.expired else task.cancelling()) <= wait.cancelling

    def _watch(self, seconds: float, now: float) -> None:
        seconds = min(seconds, _LONGEST)
        self._next = now + seconds
        # In a context of its own, because the caller's would keep its run alive while anything waits.
        self.loop.call_later(seconds, self._look, self._next, context=Context())

    def _look(self, when: float) -> None:
        if when == self._next:  # otherwise an earlier one replaced it, and others will follow
            self._next = _NEVER
        now = monotonic()
        for wait, task in self._waiting.items():
            if wait.at <= now and not wait.expired:
                wait.expired = True
                task.cancel()
        left = min((wait.at for wait in self._waiting if not wait.expired), default=_NEVER)
        if left < self._next:
            self._watch(left - now, now)


_latest: ref[TimeLimit] | None = None  # weak, because it would keep its loop alive


def time_limit() -> TimeLimit:
    """Return the time limit of the running loop; the last one made, if it belongs to this loop."""
    global _latest
    loop, limit = asyncio.get_running_loop(), _latest() if _latest else None
    if limit is None or limit.loop is not loop:
        limit = TimeLimit(loop)
        _latest = ref(limit)
    return limit


async def finished(
    future: asyncio.Future[Any], *, on_cancel: Callable[[], object] = lambda: None
) -> asyncio.CancelledError | None:
    """Wait until `future` is done, even if the caller is cancelled; return the caller's last cancellation, or None.

    `on_cancel` is called whenever the caller is cancelled. Some scopes cancel on every turn of the loop until they end, so this
    only ever awaits a future that others complete.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
            on_cancel()
    return cancelled


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    await finished(task)
    return task.result()


async def to_the_end(work: Awaitable[T], *, on_cancel: Callable[[], object] = lambda: None) -> T:
    """Await `work` to its end, however often the caller is cancelled meanwhile, and then raise the cancellation."""
    task = asyncio.ensure_future(work)
    cancelled = await finished(task, on_cancel=on_cancel)
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()


async def answered(ask: Awaitable[T]) -> T:
    """Await a store. A `CancelledError` that wasn't meant for the caller becomes a `StoreError`."""
    before = cancellations()
    try:
        return await ask
    except asyncio.CancelledError as error:
        if cancellations() > before:
            raise
        raise StoreError("the store gave it up, though nobody cancelled it") from error


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of these has ended, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def cancellations(task: asyncio.Task[Any] | None = None) -> int:
    """Return how often `task`, or the running one, was cancelled. A `CancelledError` without a new one is another task's."""
    task = task or asyncio.current_task()
    return task.cancelling() if task else 0
