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
    """Items that are flushed together, and who waits for each."""

    __slots__ = ("callers", "items", "size")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.callers: list[asyncio.Future[Result]] = []
        self.size = 0


class Batcher(Generic[Item, Result]):
    """Combines concurrent calls of `submit` into calls of `flush`, one at a time, each with the items that gathered meanwhile.

    While nothing is in flight, `submit` awaits its own flush: no task, no delay. While a flush is in flight, the next batch
    gathers, up to `max_items` items and `max_bytes` bytes by `size` (one item may be larger than that). A full batch is sent
    before the callers of the previous one resume.

    A batcher serves one event loop at a time.

    `flush` takes the items in the order in which they were submitted and returns as many results. When it raises one of
    `refused` for a batch, each item of that batch is flushed alone, so that one bad item harms no other; any other exception
    goes to every caller of the batch.

    A cancelled `submit` takes no other item along: its own item may have been written or not.
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

    async def submit(self, item: Item) -> Result:
        """Flush `item`, alone or among others, and return its result."""
        if self._busy and (loop := self._loop) is not None and not loop.is_closed():
            size, batch = self._size(item), self._waiting[-1] if self._waiting else None
            if batch is None or len(batch.items) >= self._max_items or batch.size + size > self._max_bytes:
                batch = _Batch()
                self._waiting.append(batch)
            caller: asyncio.Future[Result] = loop.create_future()
            batch.items.append(item)
            batch.callers.append(caller)
            batch.size += size
            return await caller
        self._busy, self._loop = True, asyncio.get_running_loop()
        self._waiting.clear()  # callers of a loop that was closed
        try:
            return (await self._flush((item,)))[0]
        finally:
            if self._waiting:
                self._hand_over()
            else:
                self._busy = False

    def _hand_over(self) -> None:
        flushing = self._flush_all()
        try:
            self._drain = asyncio.create_task(flushing, name="durable-batcher")
            self._drain.add_done_callback(self._forget_drain)
        except RuntimeError:  # the loop was closed over unfinished tasks, and with it everyone who waits
            flushing.close()
            self._waiting.clear()
            self._busy = False

    async def _flush_all(self) -> None:
        batch = self._next_batch()
        flight: asyncio.Task[Sequence[Result]] | None = None
        try:
            while batch is not None:
                results = await self._results(batch, flight)
                following = self._full_batch()
                flight = asyncio.create_task(self._flush_batch(following)) if following else None
                _answer(batch.callers, results)
                batch = following
                # Callers that were just answered often submit again at once: let them join the next batch.
                await asyncio.sleep(0)
                batch = batch or self._next_batch()
        finally:
            self._drain = None
            # Any left are there because this task was cancelled, as when the loop shuts down: nobody waits for ever.
            if flight is None:
                self._busy = False
            else:
                flight.cancel()
                flight.add_done_callback(self._after_flight)
            if batch is not None:
                self._waiting.appendleft(batch)
            self._give_up()

    def _forget_drain(self, drain: asyncio.Task[None]) -> None:
        if self._drain is drain:  # it was cancelled before its first turn
            self._drain, self._busy = None, False
            self._give_up()

    def _give_up(self) -> None:
        given_up = StoreError("given up: the task that writes batches was cancelled")
        while self._waiting:
            _answer(self._waiting.popleft().callers, given_up)

    def _after_flight(self, flight: asyncio.Task[Sequence[Result]]) -> None:
        """Flush the batches that gathered during a flight for which nobody waits any more."""
        if not flight.cancelled():
            flight.exception()
        if self._waiting:
            self._hand_over()
        else:
            self._busy = False

    def _full_batch(self) -> _Batch[Item, Result] | None:
        """Take a batch that can't grow: it is sent before the callers of the previous one are answered."""
        can_grow = len(self._waiting) == 1 and len(self._waiting[0].items) < self._max_items
        return None if can_grow else self._next_batch()

    def _next_batch(self) -> _Batch[Item, Result] | None:
        """Take the first batch that somebody still waits for, without the items of cancelled callers."""
        while self._waiting:
            batch = self._waiting.popleft()
            if any(map(asyncio.Future.done, batch.callers)):
                waiting = [not caller.done() for caller in batch.callers]
                batch.items, batch.callers = [*compress(batch.items, waiting)], [*compress(batch.callers, waiting)]
            if batch.items:
                return batch
        return None

    async def _flush_batch(self, batch: _Batch[Item, Result]) -> Sequence[Result]:
        return await self._flush(batch.items)

    async def _results(
        self, batch: _Batch[Item, Result], flight: asyncio.Task[Sequence[Result]] | None = None
    ) -> Sequence[Result] | Exception:
        """Flush the batch, or wait for its flight; the items of a batch that is refused are flushed again one by one."""
        try:
            results = await (flight or self._flush(batch.items))
            if len(results) != len(batch.items):
                raise RuntimeError(f"flush returned {len(results)} results for {len(batch.items)} items")
            return results
        except self._refused as refusal:
            if len(batch.items) > 1:
                for item, caller in zip(batch.items, batch.callers, strict=True):
                    if not caller.done():
                        alone: _Batch[Item, Result] = _Batch()
                        alone.items, alone.callers = [item], [caller]
                        _answer(alone.callers, await self._results(alone))
            return refusal
        except Exception as error:
            return error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return StoreError("given up: the write was cancelled from within")


def _answer(callers: Sequence[asyncio.Future[Result]], results: Sequence[Result] | Exception) -> None:
    """Give each caller its result, or all the same error."""
    if not callers or callers[0].get_loop().is_closed():
        return
    if isinstance(results, Exception):
        for caller in callers:
            if not caller.done():
                caller.set_exception(results)
    else:
        for caller, result in zip(callers, results, strict=True):
            if not caller.done():
                caller.set_result(result)
