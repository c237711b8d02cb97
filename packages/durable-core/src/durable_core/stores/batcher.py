"""Many concurrent appends, few writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import compress
from typing import Final, Generic, TypeVar

from durable_core.errors import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Batch(Generic[Item, Result]):
    """Items that are flushed together, and the caller that waits for each."""

    __slots__ = ("callers", "items", "size")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.callers: list[asyncio.Future[Result]] = []
        self.size = 0


class Batcher(Generic[Item, Result]):
    """Combines concurrent calls of `submit` into batches: one call of `flush` at a time, with the items that came meanwhile.

    If no flush is in flight, `submit` awaits its own, without a task and without a delay. While a flush is in flight, the next
    batch collects up to `max_items` items and `max_bytes` bytes, measured by `size` (one item may be larger than that). A full
    batch is sent before the callers of the previous one resume.

    A batcher serves one event loop at a time.

    `flush` gets the items in the order in which they were submitted and returns as many results. If it raises one of `refused`
    for a batch, each item of the batch is flushed alone, so that one bad item doesn't affect the others. Any other exception is
    raised to every caller of the batch.

    Cancelling a `submit` doesn't cancel other items. Its own item may have been written or not.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        size: Callable[[Item], int],
        max_items: int = 500,
        max_bytes: int = 4 * 1024 * 1024,
        refused: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self._flush: Final = flush
        self._size: Final = size
        self._max_items: Final = max_items
        self._max_bytes: Final = max_bytes
        self._refused: Final = refused
        self._waiting: Final[deque[_Batch[Item, Result]]] = deque()
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None  # that it serves
        self._drain: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly
        self._flying: Sequence[asyncio.Future[Result]] = ()  # callers of the batch that is flushed now

    async def submit(self, item: Item) -> Result:
        """Flush `item`, alone or among others, and return its result."""
        loop = self._loop
        if self._busy and loop is not None and not loop.is_closed():
            size, batch = self._size(item), self._waiting[-1] if self._waiting else None
            if batch is None or len(batch.items) >= self._max_items or batch.size + size > self._max_bytes:
                batch = _Batch()
                self._waiting.append(batch)
            caller: asyncio.Future[Result] = loop.create_future()
            batch.items.append(item)
            batch.callers.append(caller)
            batch.size += size
            return await caller
        loop = asyncio.get_running_loop()
        self._busy, self._loop = True, loop
        self._waiting.clear()  # callers of a loop that was closed
        try:
            return (await self._flush((item,)))[0]
        finally:
            if loop is self._loop:  # else the loop was closed over this flush
                self._busy = bool(self._waiting)
                if self._waiting and not loop.is_closed():
                    self._drain = loop.create_task(self._flush_all(), name="durable-batcher")
                    self._drain.add_done_callback(self._drained)

    async def _flush_all(self) -> None:
        batch = self._next_batch()
        flight: asyncio.Task[Sequence[Result] | Exception] | None = None
        while batch is not None:
            self._flying = batch.callers
            results = await (flight or self._results(batch.items, batch.callers))
            following = self._full_batch()
            flight = asyncio.create_task(self._results(following.items, following.callers)) if following else None
            _answer(batch.callers, results)
            if following is None:
                # Callers that were just answered often submit again at once: let them join the next batch.
                await asyncio.sleep(0)
                following = self._next_batch()
            batch = following
        self._drain, self._busy = None, False

    def _drained(self, drain: asyncio.Task[None]) -> None:
        """Answer all callers if the task was cancelled, as when the loop shuts down, so that nobody waits forever."""
        if not drain.cancelled():
            return
        self._drain, self._busy = None, False
        given_up = StoreError("the write was cancelled, together with the task that writes batches")
        for callers in (self._flying, *(batch.callers for batch in self._waiting)):
            _answer(callers, given_up)
        self._flying = ()
        self._waiting.clear()

    def _full_batch(self) -> _Batch[Item, Result] | None:
        """Take a batch that can't grow: it is sent before the callers of the previous one are answered."""
        can_grow = len(self._waiting) == 1 and len(self._waiting[0].items) < self._max_items
        return None if can_grow else self._next_batch()

    def _next_batch(self) -> _Batch[Item, Result] | None:
        """Take the first batch that somebody still waits for, without the items of cancelled callers."""
        while self._waiting:
            batch = self._waiting.popleft()
            waiting = [not caller.done() for caller in batch.callers]
            if any(waiting):
                batch.items, batch.callers = [*compress(batch.items, waiting)], [*compress(batch.callers, waiting)]
                return batch
        return None

    async def _results(
        self, items: Sequence[Item], callers: Sequence[asyncio.Future[Result]] = ()
    ) -> Sequence[Result] | Exception:
        """Flush the items. If the batch is refused, flush them one by one and answer their callers."""
        try:
            results = await self._flush(items)
            if len(results) != len(items):
                raise RuntimeError(f"flush returned {len(results)} results for {len(items)} items")
            return results
        except self._refused as refusal:
            if len(items) > 1:
                for item, caller in zip(items, callers, strict=True):
                    if not caller.done():
                        _answer([caller], await self._results([item]))
            return refusal
        except Exception as error:
            return error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return StoreError("the write was cancelled, though its caller was not")


def _answer(callers: Sequence[asyncio.Future[Result]], results: Sequence[Result] | Exception) -> None:
    """Give each caller its result, or all the same error."""
    for number, caller in enumerate(callers):
        if not caller.done():
            if isinstance(results, Exception):
                caller.set_exception(results)
            else:
                caller.set_result(results[number])
