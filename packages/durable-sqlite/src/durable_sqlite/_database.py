"""The database file: its only connection, and the thread that uses it."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Final, TypeVar, TypeVarTuple
from weakref import WeakSet

from durable_core import StoreError
from durable_core.store import to_the_end
from durable_core.stores.worker import Worker

from ._errors import code_of, explain_errors
from ._schema import prepare

T = TypeVar("T")
Args = TypeVarTuple("Args")

_LONGEST_PAUSE: Final = 0.003
# A commit that returned survives a power cut, on macOS too. A thousand runs write to many pages: they stay in memory, and are
# copied from the write-ahead log less often.
_SETTINGS: Final = """
    pragma synchronous = full;
    pragma fullfsync = on;
    pragma checkpoint_fullfsync = on;
    pragma cache_size = -65536;
    pragma wal_autocheckpoint = 10000;
"""


class Database:
    """Does what it is given in a thread of its own, one thing after the other. Serves all threads and event loops.

    Thread and connection are made when they are needed. A locked database is tried again for `lock_timeout` seconds.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path: Final = path
        self._lock_timeout: Final = lock_timeout
        self._worker = self._new_worker()
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._mutex = RLock()  # held while the connection is in use
        with _forking:
            _databases.add(self)

    def run(self, work: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Return the future of what `work` returns. If that is cancelled, the work is done all the same."""
        return self._worker.run(work, *args)

    def ask(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> asyncio.Future[T]:
        """Return the future of what `work` returns, which gets the connection first."""
        return self.run(self._ask, lambda connection: work(connection, *args))

    async def close(self) -> None:
        """Wait until all is done that was asked for, and close the connection; who asks again opens it."""
        await to_the_end(self._worker.close())

    def _new_worker(self) -> Worker:
        return Worker("durable-sqlite", at_end=self._close)

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        deadline = time.monotonic() + self._lock_timeout
        with explain_errors(self.path, seconds=self._lock_timeout):
            while True:
                try:
                    with self._mutex:
                        return work(self._open())
                except sqlite3.Error as error:
                    # SQLite's own way to wait is not fair: some wait for a second where these pauses keep it below 50 ms.
                    if code_of(error) == sqlite3.SQLITE_BUSY and time.monotonic() < deadline:
                        time.sleep(random.random() * _LONGEST_PAUSE)
                        continue
                    self._close()  # nobody knows what state it is in
                    raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            if self._is_there():
                return self._connection
            self._close()  # somebody removed or replaced the file: what is written to the old one is lost
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; name a file in it, such as {self.path / 'runs.db'}")
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path}: there is no folder {self.path.parent}; make it first")
        # Private to its owner. A file that is there is not opened: closing it would give back the locks that SQLite holds on it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            ((mode,),) = connection.execute("pragma journal_mode = wal")
            if mode != "wal":
                raise StoreError(f"{self.path} can't have a write-ahead log, its journal mode is {mode!r}; use a local disk")
            connection.executescript(_SETTINGS)
            prepare(connection)
            self._file = self.path.stat()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _is_there(self) -> bool:
        with suppress(FileNotFoundError):
            return self._file is not None and os.path.samestat(self.path.stat(), self._file)
        return False

    def _close(self) -> None:
        with self._mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


# A process that has SQLite open must not fork: its child would share locks that it doesn't hold, and lose commits. So every
# connection is closed before, and opened anew by who needs it.
_databases: Final[WeakSet[Database]] = WeakSet()
_forking = RLock()
_stopped: Final[list[Database]] = []


def _before_fork() -> None:
    _forking.acquire()
    _stopped.extend(_databases)
    for database in _stopped:
        database._mutex.acquire()
        database._close()


def _after_in_parent() -> None:
    for database in _stopped:
        database._mutex.release()
    _stopped.clear()
    _forking.release()


def _after_in_child() -> None:
    global _forking
    for database in _stopped:
        database._mutex, database._worker = RLock(), database._new_worker()
    _stopped.clear()
    _forking = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
