"""The event loop to which a store's connections belong."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Final

from durable_core.errors import StoreError


class OneLoop:
    """Allows a store to be used from one event loop at a time. Each of its methods calls `enter`.

    `given` means that the store was built around the caller's client, so it can't connect again.
    """

    def __init__(self, store: str, *, given: bool) -> None:
        self._store: Final = store
        self._given: Final = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_new = False
        self._pid = os.getpid()
        self._changing = threading.Lock()

    def enter(self) -> bool:
        """Return True if the store must connect again: its loop or process has ended, or `leave` was called.

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
                advice = "give it a client made on this loop" if self._given else "open another store on this loop"
                state = "is running" if runs else "has ended"
                raise StoreError(f"{self._store} belongs to another event loop, which {state}: {advice}")
            anew = self._is_new or before is not None
            self._loop, self._is_new = loop, False
            return anew

    def leave(self) -> None:
        """Allow any loop to use the store next. Nothing that belongs to this loop is left."""
        self._loop, self._is_new = None, True
