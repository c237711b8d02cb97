"""The logs of one store, each under its lock, as many in memory as there is room for."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from durable_core import RecordLines, StepRecord
from durable_core.stores.filelock import Holder, Lock, Locks, position_of

from . import _disk
from ._explain import explained, explanation
from ._log import Entry, Log

T = TypeVar("T")
Step = tuple[str, str]
"""The ids of a run and of one of its steps."""

_OVERHEAD: Final = 4096
_logger: Final = logging.getLogger("durable_file")


class Logs:
    """The logs in `folder`, by file name. For one thread, but for `take_run` and `run_holder`."""

    def __init__(self, folder: Path, *, memory: int, lock_timeout: float) -> None:
        self.folder: Final = folder
        self._memory: Final = memory
        self._locks: Final = Locks(folder, make_folder=_disk.make_folder, wait_limit=lock_timeout)
        self._recent: Final[dict[str, Log]] = {}  # the least recently used first
        self._weights: Final[dict[str, int]] = {}
        self._weight = 0

    def path(self, name: str) -> Path:
        return self.folder / name

    def append(self, name: str, entries: Sequence[Entry]) -> list[StepRecord]:
        with self._locked(name, "append to") as log, _disk.opened(log.path, _disk.APPEND) as fd:
            if unfinished := log.refresh(fd):
                log.cut(fd, unfinished)
            return log.append(fd, entries)

    def get(self, name: str, steps: Sequence[Step]) -> list[bytes | None]:
        return self._read(name, lambda log: [log.get(run_id, step_id) for run_id, step_id in steps], [None] * len(steps))

    def list(self, name: str, run_id: str) -> RecordLines:
        return self._read(name, lambda log: log.entries(run_id), RecordLines(()))

    def run_ids(self, name: str) -> Sequence[str]:
        return self._read(name, lambda log: log.run_ids, [])

    def clear(self, name: str, run_id: str) -> None:
        if not self._exists(name):
            return
        with self._locked(name, "clear a run of") as log:
            with _disk.opened(log.path, _disk.APPEND) as fd:
                if unfinished := log.refresh(fd):
                    log.cut(fd, unfinished)
                if not log.holds(run_id):
                    return
                alone = log.holds(run_id, alone=True)
                if not alone:
                    log.clear(fd, run_id)
            if alone:
                log.remove()
            elif log.mostly_cleared:
                self._shrink(log)

    def open_whole(self, name: str) -> tuple[int, int] | None:
        """Open a log for reading without an index; return the descriptor and where its durable lines end."""
        if self._exists(name):
            with self._locked(name, "read", shared=True) as log, suppress(FileNotFoundError):  # removed just now
                fd = os.open(log.path, _disk.READ)
                try:
                    log.sync(fd, unread=True)
                    return fd, _disk.end_of_lines(fd, os.fstat(fd).st_size)
                except BaseException:
                    os.close(fd)
                    raise
        return None

    def take_run(self, name: str, run_id: str) -> Lock | None:
        """Take a run's lock, or return None where another holds it."""
        with explained("lock a run of", self.path(name)):
            return self._locks.take(position_of("run", _folded(name), run_id), named=True)

    def run_holder(self, name: str, run_id: str) -> Holder | None:
        """Tell who holds a run's lock that was just found taken, as far as is known."""
        return self._locks.holder(position_of("run", _folded(name), run_id))

    def close(self) -> None:
        self._locks.close()

    @contextmanager
    def _locked(self, name: str, doing: str, *, shared: bool = False) -> Iterator[Log]:
        log = self._recent.pop(name, None) or Log(self.path(name), position_of("log", _folded(name)))
        self._recent[name] = log
        lock = None
        try:
            lock = self._locks.wait(log.position, shared=shared and not log.doubtful)
            if log.doubtful:
                log.rewrite()
            yield log
        except OSError as error:
            raise explanation(error, doing, log.path) from error
        finally:
            if lock is not None:
                lock.release()
            self._make_room(name, log)

    def _exists(self, name: str) -> bool:
        """Tell whether there is a log, so that reading creates nothing, not even a lock file."""
        path = self.path(name)
        with explained("read", path), suppress(FileNotFoundError):
            path.stat()
            return True
        return False

    def _read(self, name: str, take: Callable[[Log], T], nothing: T) -> T:
        if self._exists(name):
            with (
                self._locked(name, "read", shared=True) as log,
                suppress(FileNotFoundError),  # removed just now
                _disk.opened(log.path, _disk.READ) as fd,
            ):
                log.refresh(fd)
                log.sync(fd)
                return take(log)
        return nothing

    def _shrink(self, log: Log) -> None:
        try:
            log.rewrite()
        except OSError as error:  # the run is cleared all the same; Windows refuses while another has the log open
            _logger.warning("%s: mostly cleared, but it could not be rewritten: %s", log.path, error)

    def _make_room(self, name: str, log: Log) -> None:
        weight = log.size + _OVERHEAD
        self._weight += weight - self._weights.get(name, 0)
        self._weights[name] = weight
        if self._weight > self._memory:
            for oldest in [*islice(self._recent, 8)]:
                if oldest != name and not self._recent[oldest].doubtful:
                    del self._recent[oldest]
                    self._weight -= self._weights.pop(oldest)


def _folded(name: str) -> str:
    """Return one spelling for all that may be one file on a disk that doesn't tell case or composition apart."""
    return unicodedata.normalize("NFC", name.casefold())
