"""The event loop that a store's connections belong to."""

from __future__ import annotations

import asyncio
from typing import Final

from durable_core.errors import StoreError


class OneLoop:
    """Lets a store be used from one event loop at a time.

    `given` says that the store was built around a client that the caller made: it can't be connected anew.
    """

    def __init__(self, store: str, *, given: bool) -> None:
        self._store: Final = store
        self._given: Final = given
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> bool:
        """Return True if connections have to be made anew: the loop that they belonged to has ended.

        Raises `StoreError` if another loop uses the store, or if a given client belongs to a loop that has ended.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return False
        before, self._loop = self._loop, loop
        if before is None:
            return False
        if before.is_running() or self._given:
            self._loop = before
            advice = "give it a client made on this loop" if self._given else "open a store of its own on this one"
            state = "is running" if before.is_running() else "has ended"
            raise StoreError(f"{self._store} belongs to another event loop, which {state}: {advice}")
        return True
