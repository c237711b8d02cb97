"""The store that keeps its logs in files."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from durable_core import (
    Batcher,
    Lease,
    LockLost,
    OpenableStore,
    RunBusy,
    StepRecord,
    StoreURL,
    SupportsLock,
    SupportsRuns,
    SupportsScan,
)
from durable_core.store import forks
from durable_core.stores.filelock import Lock

from ._explain import NoRoom
from ._lines import record_line, slot_of
from ._log import Entry
from ._logs import Logs, Step
from ._names import SUFFIX, file_name, path_of
from ._scan import Scan, log_names, runs_in
from ._worker import Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

_NAMES_AT_ONCE: Final = 256


class FileStore(OpenableStore, SupportsRuns, SupportsScan, SupportsLock):
    """Keeps runs in JSON Lines files on a local disk.

    A `path` that ends in `.jsonl` is one log for all runs; any other is a folder with one log a run. Any number of processes
    may use it. What it creates is private to its owner. A record is durable once `fdatasync` has returned; appends to one log
    that wait at the same time share one.

    About `memory` bytes of a folder's logs are kept in memory. Who finds a log locked by another process waits up to
    `lock_timeout` seconds, and then raises `StoreError`.
    """

    def __init__(self, path: str | os.PathLike[str], *, memory: int = 64 * 1024 * 1024, lock_timeout: float = 30.0) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given or "\0" in given:
            raise ValueError(f"{path!r} is no path; expected one such as './runs' for a folder or './runs.jsonl' for one log")
        self._path: Final = Path(given).resolve()
        self._one_log: Final = self._path.name if given.lower().endswith(SUFFIX) else ""
        self._folder: Final = self._path.parent if self._one_log else self._path
        self._memory: Final = memory
        self._lock_timeout: Final = lock_timeout
        self._opened: _Opened | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        parsed = StoreURL(url)
        parsed.options({})
        return cls(path_of(parsed))

    async def append(self, record: StepRecord) -> StepRecord:
        appends = self._use().appends(self._one_log or file_name(record.run_id))
        return await appends.submit((record, slot_of(record.step_id, record.revision), record_line(record)))

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        line = await self._use().reads(self._name(run_id)).submit((run_id, step_id))
        return None if line is None else StepRecord.from_json(line)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        opened = self._use()
        return await opened.worker.run(opened.logs.list, self._name(run_id), run_id)

    async def clear(self, run_id: str) -> None:
        opened = self._use()
        await opened.worker.run(opened.logs.clear, self._name(run_id), run_id)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        opened = self._use()
        if self._one_log:
            for run_id in await opened.worker.run(opened.logs.run_ids, self._one_log):
                if run_id.startswith(prefix):
                    yield run_id
            return
        names = await opened.worker.run(log_names, self._folder)
        for start in range(0, len(names), _NAMES_AT_ONCE):
            for run_id in await opened.worker.run(runs_in, self._folder, names[start : start + _NAMES_AT_ONCE], prefix):
                yield run_id

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        opened = self._use()
        scan = Scan(opened.logs, self._name(run_id), run_id)
        try:
            await opened.worker.run(scan.open)
            while (lines := await opened.worker.run(scan.next_lines)) is not None:
                for line in lines:
                    yield StepRecord.from_json(line)
        finally:
            opened.worker.post(scan.close)  # after a read that may still be under way

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        logs, name = self._use().logs, self._name(run_id)
        held = logs.take_run(name, run_id)
        if held is None:
            holder = logs.run_holder(name, run_id)
            raise RunBusy(run_id, holder=str(holder or "another process"), since=holder.since if holder else None)
        try:
            yield _Held(run_id, held)
        finally:
            held.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        opened, self._opened = self._opened, None
        if opened is not None and not opened.inherited:
            await opened.worker.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def _name(self, run_id: str) -> str:
        return self._one_log or file_name(run_id)

    def _use(self) -> _Opened:
        """Return what is open; a forked child opens everything anew, for it has no thread and must not share locks."""
        opened = self._opened
        if opened is None or opened.inherited:
            opened = self._opened = _Opened(Logs(self._folder, memory=self._memory, lock_timeout=self._lock_timeout))
        return opened


class _Held(Lease):
    """The system's lock on a run, which goes with the process."""

    def __init__(self, run_id: str, lock: Lock) -> None:
        self._run_id: Final = run_id
        self._lock: Final = lock

    def check(self) -> None:
        if not self._lock.held:
            raise LockLost(
                f"this process ({os.getpid()}) does not hold run {self._run_id!r}: the lock was given back, or is its parent's"
            )


class _Opened:
    """What a store has open in one process."""

    def __init__(self, logs: Logs) -> None:
        self._forks: Final = forks()
        self.logs: Final = logs
        self.worker: Final = Worker(at_end=self.logs.close)
        self.appends: Final = _Batchers(self.worker.run, self.logs.append, size=_size, refused=NoRoom)
        self.reads: Final = _Batchers(self.worker.run, self.logs.get, size=_no_size, refused=())

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that opened it: it has no thread, and must not share locks."""
        return self._forks != forks()


class _Batchers(Generic[Item, Result]):
    """One batcher a log, which lives for as long as something goes through it, or until that of another log is used."""

    def __init__(
        self,
        run: Callable[..., Awaitable[list[Result]]],
        work: Callable[[str, Sequence[Item]], list[Result]],
        *,
        size: Callable[[Item], int],
        refused: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self._run: Final = run
        self._work: Final = work
        self._size: Final = size
        self._refused: Final = refused
        self._latest: tuple[str, Batcher[Item, Result] | None] = ("", None)
        self._batchers: Final[weakref.WeakValueDictionary[str, Batcher[Item, Result]]] = weakref.WeakValueDictionary()

    def __call__(self, name: str) -> Batcher[Item, Result]:
        latest, batcher = self._latest
        if batcher is None or latest != name:
            batcher = self._batchers.get(name)
            if batcher is None:
                flush = partial(self._run, self._work, name)
                batcher = self._batchers[name] = Batcher(flush, size=self._size, refused=self._refused)
            self._latest = name, batcher
        return batcher


def _size(entry: Entry) -> int:
    return len(entry[2])


def _no_size(step: Step) -> int:
    return 0
