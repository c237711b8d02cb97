"""The database file, its one connection, and the thread that uses it."""

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

from ._check import Checked
from ._errors import code_of, explain_errors
from ._schema import prepare

T = TypeVar("T")
Args = TypeVarTuple("Args")

_LONGEST_PAUSE: Final = 0.003
# A commit that returned survives a power cut, on macOS too. The large cache and the rare checkpoints are for many runs at once,
# which write to many pages.
_SETTINGS: Final = """
    pragma synchronous = full;
    pragma fullfsync = on;
    pragma checkpoint_fullfsync = on;
    pragma cache_size = -65536;
    pragma wal_autocheckpoint = 10000;
    pragma cell_size_check = on;
"""


class File:
    """The file and its one connection, opened when needed. If the file is locked, tries again for `lock_timeout` seconds."""

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path: Final = path
        self._lock_timeout: Final = lock_timeout
        self._connection: sqlite3.Connection | None = None
        self._status: os.stat_result | None = None
        self.mutex = RLock()  # held while the connection is in use
        with _forking:
            _files.add(self)

    def ask(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        """Call `work` with the connection before `args`, and return its result."""
        deadline = time.monotonic() + self._lock_timeout
        with explain_errors(self.path, seconds=self._lock_timeout):
            while True:
                try:
                    with self.mutex:
                        return work(self._open(), *args)
                except sqlite3.Error as error:
                    # SQLite's own waiting is not fair: some wait for a second. With these pauses, nobody waits 50 ms.
                    if code_of(error) == sqlite3.SQLITE_BUSY and time.monotonic() < deadline:
                        time.sleep(random.random() * _LONGEST_PAUSE)
                        continue
                    self.close()  # its state is unknown
                    raise

    def close(self) -> None:
        with self.mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            if self._is_there():
                return self._connection
            self.close()  # somebody removed or replaced the file: writes to the old one would be lost
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; name a file in it, such as {self.path / 'runs.db'}")
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path}: there is no folder {self.path.parent}; make it first")
        # Make the file private to its owner. Don't open an existing one: closing it would drop the locks that SQLite has on it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False, factory=Checked)
        try:
            ((mode,),) = connection.execute("pragma journal_mode = wal")
            if mode != "wal":
                raise StoreError(f"{self.path} can't have a write-ahead log, its journal mode is {mode!r}; use a local disk")
            connection.executescript(_SETTINGS)
            prepare(connection)
            self._status = self.path.stat()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _is_there(self) -> bool:
        with suppress(FileNotFoundError):
            return self._status is not None and os.path.samestat(self.path.stat(), self._status)
        return False


class Database:
    """Works on a file in a thread of its own, one call after the other. Serves all threads and event loops."""

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self._file: Final = File(path, lock_timeout)
        self._process, self._worker = os.getpid(), self._new_worker()

    def run(self, work: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Return a future with the result of `work`. Cancelling the future does not stop the work."""
        return self._here().run(work, *args)

    def ask(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> asyncio.Future[T]:
        """Call `work` with the connection before `args`, and return a future with its result."""
        return self.run(self._file.ask, work, *args)

    async def close(self) -> None:
        """Wait for all work that was asked for, and close the connection. The next `ask` opens it again."""
        await to_the_end(self._here().close())

    def _here(self) -> Worker:
        if self._process != os.getpid():  # a forked child has no thread
            self._process, self._worker = os.getpid(), self._new_worker()
        return self._worker

    def _new_worker(self) -> Worker:
        return Worker("durable-sqlite", at_end=self._file.close)


# A process must not fork while it has SQLite open: the child would act on locks that it doesn't hold, and lose commits. So we
# close every connection before a fork. The next call opens it again.
_files: Final[WeakSet[File]] = WeakSet()
_forking = RLock()
_closed: Final[list[File]] = []


def _before_fork() -> None:
    _forking.acquire()
    _closed.extend(_files)
    for file in _closed:
        file.mutex.acquire()
        file.close()


def _after_in_parent() -> None:
    for file in _closed:
        file.mutex.release()
    _closed.clear()
    _forking.release()


def _after_in_child() -> None:
    global _forking
    for file in _closed:
        file.mutex = RLock()
    _closed.clear()
    _forking = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
