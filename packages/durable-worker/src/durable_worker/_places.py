"""The places of limits: locks that all workers of a store share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import sample
from typing import Final
from weakref import WeakValueDictionary

from durable_core.clock import Clock
from durable_core.engine import Limit, first_of, holding
from durable_core.errors import RunBusy
from durable_core.store import Store


class Places:
    """Takes places for the runs of one worker. Runs that wait for the same limit try one after the other."""

    def __init__(self, store: Store, clock: Clock, poll: float) -> None:
        self._store: Final = store
        self._clock: Final = clock
        self._poll: Final = poll / 5  # another process may free a place without our knowledge
        self._turns: Final = WeakValueDictionary[str, asyncio.Lock]()
        self._freed: Final = WeakValueDictionary[str, asyncio.Event]()
        """Set when this worker frees a place. They exist only while a run waits, because there may be many limits."""

    @asynccontextmanager
    async def one(self, limit: Limit) -> AsyncIterator[None]:
        """Hold one of the places. Entering raises `RunBusy` if all are taken."""
        name, number = limit
        first, *others = sample(range(number), number)
        is_taken = False
        try:
            async with AsyncExitStack() as stack:
                for place in others:
                    with suppress(RunBusy):
                        await stack.enter_async_context(holding(self._store, f"$limit/{name}/{place}"))
                        break
                else:
                    await stack.enter_async_context(holding(self._store, f"$limit/{name}/{first}"))
                is_taken = True
                yield
        finally:
            if is_taken and (freed := self._freed.get(name)) is not None:
                freed.set()

    @asynccontextmanager
    async def next(self, limit: Limit, gives_up: Callable[[], bool]) -> AsyncIterator[None]:
        """Wait for one of the places, and hold it. Entering raises `RunBusy` once `gives_up` returns True."""
        freed = self._freed.setdefault(limit[0], asyncio.Event())
        turn = self._turns.setdefault(limit[0], asyncio.Lock())
        async with AsyncExitStack() as stack:
            async with turn:
                while True:
                    freed.clear()
                    try:
                        await stack.enter_async_context(self.one(limit))
                        break
                    except RunBusy:
                        if gives_up():
                            raise
                    await first_of(freed.wait(), self._clock.sleep(self._poll))
            yield
