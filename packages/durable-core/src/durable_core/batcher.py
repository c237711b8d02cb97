"""Many concurrent appends, few writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from .errors import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")


_Waiting = tuple[Item, int, asyncio.Future[Result]]  # plain, since one is made for every item


class Batcher(Generic[Item, Result]):
    """Combines concurrent calls of `submit` into calls of `flush`, one at a time, each with the items that gathered meanwhile.

    While nothing is in flight, `submit` awaits its own flush: no task, no delay. While a flush is in flight, the next batch
    gathers, up to `max_items` items and `max_bytes` bytes by `size` (one item may be larger than that); when that many items
    wait, they are under way before the callers of the last batch go on.

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
        self._waiting: Final[deque[_Waiting[Item, Result]]] = deque()
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None  # of those who are served
        self._drain: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly

    async def submit(self, item: Item) -> Result:
        """Flush `item`, alone or among others, and return its result."""
        if self._busy and self._loop is not None and not self._loop.is_closed():
            future: asyncio.Future[Result] = self._loop.create_future()
            self._waiting.append((item, self._size(item), future))
            return await future
        self._busy, self._loop = True, asyncio.get_running_loop()
        self._waiting.clear()  # whom a closed loop left behind
        try:
            return (await self._flush((item,)))[0]
        finally:
            if self._waiting:
                self._hand_over()
            else:
                self._busy = False

    def _hand_over(self) -> None:
        drained = self._drained()
        try:
            self._drain = asyncio.create_task(drained, name="durable-batcher")
        except RuntimeError:  # the loop was closed over unfinished tasks, and with it everyone who waits
            drained.close()
            self._waiting.clear()
            self._busy = False

    async def _drained(self) -> None:
        batch = self._next_batch()
        flight: asyncio.Task[Sequence[Result]] | None = None
        try:
            while batch:
                answers = await self._answers(batch, flight)
                following = self._full_batch()
                flight = asyncio.create_task(self._flushed(following)) if following else None
                for (_, _, future), answer in zip(batch, answers, strict=True):
                    _answer(future, answer)
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
                flight.add_done_callback(self._landed)
            for _, _, future in (*batch, *self._waiting):
                _answer(future, _Failed(StoreError("given up: the task that writes batches was cancelled")))
            self._waiting.clear()

    def _landed(self, flight: asyncio.Task[Sequence[Result]]) -> None:
        """Go on after a flight that nobody waits for any more."""
        if not flight.cancelled():
            flight.exception()
        if self._waiting:
            self._hand_over()
        else:
            self._busy = False

    def _full_batch(self) -> list[_Waiting[Item, Result]]:
        """Take a batch that can't grow, which therefore goes out before the callers of the last one are answered."""
        return self._next_batch() if len(self._waiting) >= self._max_items else []

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        bytes_ = 0
        while self._waiting and len(batch) < self._max_items:
            _, size, future = first = self._waiting[0]
            if not future.done():
                bytes_ += size
                if batch and bytes_ > self._max_bytes:
                    break
                batch.append(first)
            self._waiting.popleft()
        return batch

    async def _flushed(self, batch: list[_Waiting[Item, Result]]) -> Sequence[Result]:
        return await self._flush([item for item, _, _ in batch])

    async def _answers(
        self, batch: list[_Waiting[Item, Result]], flight: asyncio.Task[Sequence[Result]] | None = None
    ) -> Sequence[Result | _Failed]:
        """Flush the batch, or wait for the flight that it is on; what is refused is flushed again item by item."""
        try:
            results = await (flight or self._flushed(batch))
            if len(results) != len(batch):
                raise RuntimeError(f"flush returned {len(results)} results for {len(batch)} items")
            return results
        except self._refused as refusal:
            if len(batch) > 1:
                for alone in batch:
                    if not alone[2].done():
                        (answer,) = await self._answers([alone])
                        _answer(alone[2], answer)
            return [_Failed(refusal)] * len(batch)
        except Exception as error:
            return [_Failed(error)] * len(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return [_Failed(StoreError("given up: the write was cancelled from within"))] * len(batch)


class _Failed:
    """Why an item has no result."""

    def __init__(self, error: Exception) -> None:
        self.error: Final = error


def _answer(future: asyncio.Future[Result], answer: Result | _Failed) -> None:
    if future.done() or future.get_loop().is_closed():
        return
    if isinstance(answer, _Failed):
        future.set_exception(answer.error)
    else:
        future.set_result(answer)
