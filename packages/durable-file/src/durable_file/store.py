"""The store that keeps its logs in files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from durable_core import (
    CorruptLog,
    Lease,
    OpenableStore,
    RunBusy,
    StepRecord,
    StoreError,
    StoreURL,
    SupportsLock,
    SupportsRuns,
    SupportsScan,
)
from durable_core.store import Holder, SupportsHolder, SupportsMarks, SupportsPolling, to_the_end
from durable_core.stores.filelock import RUN_FILES, Locks, RunLock, Spot, spot_of
from durable_core.stores.worker import Worker

from . import _disk
from ._explain import explain_errors
from ._lines import record_line, record_of, slot_of
from ._log import Known, Log, logger
from ._logs import Logs, folded
from ._names import SUFFIX, file_name, path_of
from ._scan import Named, Status, log_names, marks_in, runs_in, scan, statuses_of

T = TypeVar("T")

_NAMES_AT_ONCE: Final = 256
_MOST_LOOKS: Final = 100_000
_THREADS: Final = 8
_THREAD: Final = "durable-file"


class FileStore(OpenableStore, SupportsRuns, SupportsScan, SupportsLock, SupportsHolder, SupportsPolling, SupportsMarks):
    """Keeps runs in JSON Lines files on a local disk.

    A `path` that ends in `.jsonl` is one log for all runs; any other is a folder with one log a run. Any number of processes
    may use it, and any number of event loops may share one store. Its files are private to their owner. A record is durable once
    `fdatasync` has returned; appends to one log that wait at the same time share one sync. A read-only folder can be read.

    The store keeps about `memory` bytes of a folder's logs in memory. It waits up to `lock_timeout` seconds for a log that
    another process has locked, and then raises `StoreError`.
    """

    poll_seconds: float = 2.0

    def __init__(self, path: str | os.PathLike[str], *, memory: int = 64 * 1024 * 1024, lock_timeout: float = 30.0) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given or "\0" in given:
            raise ValueError(f"{path!r} is not a path; expected one such as './runs' for a folder or './runs.jsonl' for one log")
        self._path: Final = Path(given).resolve()
        self._one_log: Final = self._path.name if given.lower().endswith(SUFFIX) else ""
        self._folder: Final = self._path.parent if self._one_log else self._path
        self._memory: Final = memory
        self._lock_timeout: Final = lock_timeout
        self._open: Final[dict[int, _Open]] = {}

    @classmethod
    def from_url(cls, url: str) -> Self:
        parsed = StoreURL(url)
        parsed.options({})
        return cls(path_of(parsed))

    async def append(self, record: StepRecord) -> StepRecord:
        name = self._name(record.run_id)
        logs, worker = self._use().logs_of(name)
        line = record_line(record)
        return await worker.share(logs.append, name, (record, slot_of(record.step_id, record.revision), line), len(line))

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._ask(self._name(run_id), partial(Log.get, run_id=run_id, step_id=step_id))

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._ask(self._name(run_id), partial(Log.entries, run_id=run_id))

    async def clear(self, run_id: str) -> None:
        name = self._name(run_id)
        logs, worker = self._use().logs_of(name)
        await worker.run(logs.clear, name, run_id)

    async def newer(self, known: Sequence[Known]) -> Sequence[StepRecord]:
        opened = self._use()
        logs: dict[str, list[Known]] = {}
        for step in known:
            logs.setdefault(self._name(step[0]), []).append(step)
        statuses = await opened.common.run(statuses_of, self._folder, [*logs])
        changed = {name: status for name, status in statuses.items() if opened.looks.get(name) != (logs[name], status)}
        if len(opened.looks) >= _MOST_LOOKS:
            opened.looks.clear()
        found: list[StepRecord] = []
        asks = [self._ask(name, partial(Log.newer, known=logs[name])) for name in changed]
        for (name, status), newer in zip(changed.items(), await asyncio.gather(*asks, return_exceptions=True), strict=True):
            if isinstance(newer, StoreError) and not isinstance(newer, CorruptLog):  # others can still be read
                logger.warning("nothing is seen of what waits in a log: %s", newer)
            elif isinstance(newer, BaseException):  # after `CorruptLog` each waiting run asks for its own steps
                raise newer
            elif newer:
                found += newer
                continue
            opened.looks[name] = logs[name], status
        return found

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        if self._one_log:
            for run_id in await self._ask(self._one_log, Log.run_ids):
                if run_id.startswith(prefix):
                    yield run_id
            return
        worker = self._use().common
        names = await worker.run(log_names, self._folder)
        damaged: list[StoreError] = []
        for start in range(0, len(names), _NAMES_AT_ONCE):
            runs, errors = await worker.run(runs_in, self._folder, names[start : start + _NAMES_AT_ONCE], prefix)
            damaged += errors
            for run_id in runs:
                yield run_id
        if damaged:  # raise last, so that all other runs are listed
            raise damaged[0]

    async def marks(self, prefix: str = "") -> Mapping[str, Hashable]:
        if self._one_log:
            found = await self._ask(self._one_log, Log.marks)
            return {run_id: mark for run_id, mark in found.items() if run_id.startswith(prefix)}
        opened = self._use()
        names = await opened.common.run(log_names, self._folder)
        if len(opened.named) > 2 * len(names):  # most of these logs are gone
            opened.named.clear()
        marks: dict[str, Hashable] = {}
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = names[start : start + _NAMES_AT_ONCE]
            marks.update(await opened.common.run(marks_in, self._folder, some, prefix, opened.named))
        return marks

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        name = self._name(run_id)
        logs, worker = self._use().logs_of(name)
        pieces = scan(logs, name, run_id)
        try:
            while (lines := await worker.run(lambda: next(pieces, None))) is not None:
                for line in lines:
                    yield record_of(logs.path(name), line)
        finally:
            worker.post(pieces.close)  # runs after a read that may still be under way

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        opened = self._use()
        lock = RunLock(run_id, opened.locks, self._spot(run_id))

        def take() -> bool:
            with explain_errors("lock a run of", self._path):
                return lock.take()

        try:
            if not await opened.common.run(take):
                holder = await self.holder(run_id) or Holder("another process", None)
                raise RunBusy(run_id, holder=holder.name, since=holder.since)
            yield lock
        finally:
            # On the thread that takes locks, so that this also gives back a lock that is still being taken.
            await to_the_end(opened.common.run(lock.release))

    async def holder(self, run_id: str) -> Holder | None:
        return (await self.holders([run_id])).get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        opened = self._use()
        return await opened.common.run(opened.holders, {run_id: self._spot(run_id) for run_id in run_ids})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if opened := self._open.pop(os.getpid(), None):
            await opened.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def _name(self, run_id: str) -> str:
        return self._one_log or file_name(run_id)

    def _spot(self, run_id: str) -> Spot:
        return spot_of("run", folded(self._name(run_id)), run_id, files=RUN_FILES)

    async def _ask(self, name: str, question: Callable[[Log], T]) -> T:
        logs, worker = self._use().logs_of(name)
        return await worker.share(logs.read, name, question)

    def _use(self) -> _Open:
        """Return what this process has open. A forked child opens its own: it has no thread, and must not share locks."""
        opened = self._open.get(os.getpid())
        return opened or self._open.setdefault(os.getpid(), _Open(self._folder, self._memory, self._lock_timeout))


class _Open:
    """The threads, locks and caches of a store in one process."""

    def __init__(self, folder: Path, memory: int, lock_timeout: float) -> None:
        self._folder: Final = folder
        self.locks: Final = Locks(folder, make_folder=_disk.make_folder, wait_limit=lock_timeout)
        self.common: Final = Worker(_THREAD, at_end=self.locks.close)
        """For work that is not about a single log: locks of runs, listing logs, finding changed ones."""
        self.looks: Final[dict[str, tuple[Sequence[Known], Status]]] = {}
        """Per log the steps that were asked for and its status then. While both stay the same, the log is not read again."""
        self.named: Final[Named] = {}
        """The runs of logs with a hashed name."""
        logs = (Logs(folder, self.locks, memory=memory // _THREADS) for _ in range(_THREADS))
        self._lanes: Final = [(some, Worker(_THREAD, finish=some.finish, at_end=self.locks.close)) for some in logs]

    def logs_of(self, name: str) -> tuple[Logs, Worker]:
        """Return the group of logs that a log belongs to, and the one thread that uses that group. A log never changes groups."""
        return self._lanes[hash(name) % _THREADS]

    def holders(self, spots: Mapping[str, Spot]) -> dict[str, Holder]:
        """Return the holder of each lock that is held."""
        with explain_errors("read who holds the runs of", self._folder):
            return {name: holder for name, spot in spots.items() if (holder := self.locks.holder(spot))}

    async def close(self) -> None:
        """Wait for all work that was asked for, and end the threads."""
        await asyncio.gather(*(worker.close() for _, worker in self._lanes))
        await self.common.close()
