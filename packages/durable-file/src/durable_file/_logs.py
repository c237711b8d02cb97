"""The logs of one thread: taking their locks, and keeping the recent ones in memory."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from durable_core import StoreError
from durable_core.stores.filelock import Locks, spot_of

from . import _disk
from ._explain import NoRoom, explain_errors
from ._lines import check_tail
from ._log import Entry, Folder, Holds, Log, logger

_OVERHEAD: Final = 4096


class Logs:
    """The logs in `folder`, by file name. Keeps about `memory` bytes of them in memory. For one thread."""

    def __init__(self, folder: Path, locks: Locks, *, memory: int) -> None:
        self._path: Final = folder
        self._folder: Final = Folder(folder)
        self._locks: Final = locks
        self._memory: Final = memory
        self._recent: Final[dict[str, Log]] = {}  # the least recently used first
        self._weights: Final[dict[str, int]] = {}
        self._weight = 0
        self._begun: Final[dict[str, Generator[None, None, None]]] = {}

    def path(self, name: str) -> Path:
        return self._path / name

    def append(self, name: str, entries: Sequence[Entry]) -> Sequence[Holds]:
        """Write entries to a log, and return a list that `finish` fills with the holder of each entry's slot.

        Several logs are written before the first is synced, because one sync may then cover others too.
        """
        holders: list[Holds] = []
        appending = self._append(name, entries, holders)
        next(appending)
        self._begun[name] = appending
        return holders

    def finish(self) -> None:
        """Sync the logs that `append` wrote to."""
        while self._begun:
            next(self._begun.popitem()[1], None)

    def _append(self, name: str, entries: Sequence[Entry], holders: list[Holds]) -> Generator[None, None, None]:
        try:
            with self._locked(name, "append to") as log, _disk.OpenFile(log.path, _disk.APPEND) as fd:
                log.refresh(fd, mend=True)
                held = yield from log.append(fd, entries)
            holders += held  # only now: closing the file and giving back the lock may fail too
        except Exception as error:
            if isinstance(error, NoRoom) and len(entries) > 1:  # some of the entries may still fit
                for entry in entries:
                    for _ in self._append(name, [entry], holders):
                        pass
            else:
                holders += [error] * len(entries)
        yield

    def read(self, name: str, questions: Sequence[Callable[[Log], Any]]) -> Sequence[Any]:
        """Ask the log each question. Return the answers, or the `StoreError` that a question raised. The log need not exist."""
        if self._exists(name):
            with (
                self._locked(name, "read", shared=True) as log,
                suppress(FileNotFoundError),  # removed just now
                _disk.OpenFile(log.path, _disk.READ) as fd,
            ):
                log.refresh(fd)
                log.sync(fd)
                return [_answer(log, question) for question in questions]
        nothing = self._new(name)
        return [question(nothing) for question in questions]

    def clear(self, name: str, run_id: str) -> None:
        if not self._exists(name):
            return
        with self._locked(name, "clear a run of") as log:
            with _disk.OpenFile(log.path, _disk.APPEND) as fd:
                log.refresh(fd, mend=True)
                if not log.holds(run_id):
                    return
                alone = log.holds(run_id, alone=True)
                if not alone:
                    log.clear(fd, run_id)
            if alone:
                log.remove()
            elif log.is_mostly_cleared:
                self._shrink(log)

    def open_whole(self, name: str) -> tuple[int, int] | None:
        """Open a log for reading without an index. Return the descriptor and the position where its durable lines end."""
        if self._exists(name):
            with self._locked(name, "read", shared=True) as log, suppress(FileNotFoundError):  # removed just now
                fd = os.open(log.path, _disk.READ)
                try:
                    log.sync(fd, unread=True)
                    size = os.fstat(fd).st_size
                    end = _disk.end_of_lines(fd, size)
                    check_tail(_disk.read(fd, end, size - end), log.path)
                    return fd, end
                except BaseException:
                    os.close(fd)
                    raise
        return None

    @contextmanager
    def _locked(self, name: str, doing: str, *, shared: bool = False) -> Iterator[Log]:
        log = self._recent.pop(name, None) or self._new(name)
        self._recent[name] = log
        lock = None
        with explain_errors(doing, log.path):
            try:
                shared = shared and not log.is_doubtful
                lock = None if shared else self._locks.take(log.spot)
                if lock is None:
                    self.finish()  # never wait for one log while holding the lock of another
                    lock = self._locks.wait(log.spot, shared=shared)
                if log.is_doubtful:
                    log.rewrite()
                yield log
            finally:
                if lock is not None:
                    lock.release()
                self._make_room(name, log)

    def _new(self, name: str) -> Log:
        return Log(self.path(name), spot_of("log", folded(name)), self._folder)

    def _exists(self, name: str) -> bool:
        """Return True if there is a log. Callers check first, so that reading creates no file, not even a lock file."""
        path = self.path(name)
        with explain_errors("read", path), suppress(FileNotFoundError):
            path.stat()
            return True
        return False

    def _shrink(self, log: Log) -> None:
        try:
            log.rewrite()
        except OSError as error:  # the run is cleared anyway; Windows refuses while another process has the log open
            logger.warning("%s: mostly cleared, but it could not be rewritten: %s", log.path, error)

    def _make_room(self, name: str, log: Log) -> None:
        weight = log.size + _OVERHEAD
        self._weight += weight - self._weights.get(name, 0)
        self._weights[name] = weight
        if self._weight > self._memory:
            for oldest in [*islice(self._recent, 8)]:
                if oldest != name and oldest not in self._begun and not self._recent[oldest].is_doubtful:
                    del self._recent[oldest]
                    self._weight -= self._weights.pop(oldest)


def _answer(log: Log, question: Callable[[Log], Any]) -> Any:
    try:
        return question(log)
    except StoreError as error:
        return error


def folded(name: str) -> str:
    """Return one spelling for all names that may be the same file: many disks ignore case and Unicode composition."""
    return unicodedata.normalize("NFC", name.casefold())
