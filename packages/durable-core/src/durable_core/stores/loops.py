"""The event loop that a store's connections belong to."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Final

from durable_core.errors import StoreError


class OneLoop:
    """Lets a store be used from one event loop at a time: each of its methods passes `enter`.

    `given` says that the store was built around a client that the caller made: it can't be connected anew.
    """

    def __init__(self, store: str, *, given: bool) -> None:
        self._store: Final = store
        self._given: Final = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_new = False
        self._pid = os.getpid()
        self._changing = threading.Lock()

    def enter(self) -> bool:
        """Return True if connections have to be made anew: the loop or process that they belonged to has ended, or `leave` came.

        Raises `StoreError` where no loop is running, if another loop uses the store, or if a given client belongs to a loop that
        has ended.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise StoreError(
                f"{self._store} is used where no event loop is running: use it inside a coroutine that asyncio.run() runs, or a"
                " store of durable_core.sync"
            ) from error
        if self._loop is loop:
            return False
        forked = self._pid != os.getpid()
        if forked:
            self._pid, self._changing = os.getpid(), threading.Lock()
        with self._changing:
            before = self._loop
            runs = before is not None and before.is_running() and not forked
            if before is not None and (runs or self._given):
                advice = "give it a client made on this loop" if self._given else "open a store of its own on this one"
                state = "is running" if runs else "has ended"
                raise StoreError(f"{self._store} belongs to another event loop, which {state}: {advice}")
            anew = self._is_new or before is not None
            self._loop, self._is_new = loop, False
            return anew

    def leave(self) -> None:
        """Let any loop be the next; nothing that belongs to this one is left."""
        self._loop, self._is_new = None, True
