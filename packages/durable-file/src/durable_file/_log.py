"""One log: its index in memory, checked against the file whenever the log is locked."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from durable_core import CorruptLog, RecordLines, StepRecord, StoreError
from durable_core.stores.filelock import Spot

from . import _disk
from ._lines import Slot, check_tail, checksum_of, clear_line, read_key, record_of, slot_of

_TAIL: Final = 256
_WORTH_REWRITING: Final = 64 * 1024
logger: Final = logging.getLogger("durable_file")

Entry = tuple[StepRecord, Slot, bytes]
"""A record to append, its slot and its line. A plain tuple, because every append makes one."""

Holds = StepRecord | Exception
"""The record that holds a slot, or the error that keeps us from knowing it."""

Known = tuple[str, str, int]
"""The id of a run, the id of a step, and the step's highest revision that the caller knows."""


class Folder:
    """The folder of one thread's logs. One sync puts the names of all new logs on the disk."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self.is_synced = True

    def sync(self) -> None:
        """Return once the names of all logs found so far are on the disk."""
        if not self.is_synced:
            _disk.sync_folder(self._path)
            self.is_synced = True


class _Run:
    """A run's lines in order of append, and the highest revision of each step with more than one entry."""

    __slots__ = ("lines", "newest")

    def __init__(self) -> None:
        self.lines: Final[dict[Slot, bytes]] = {}
        self.newest: Final[dict[str, int]] = {}


class Log:
    """The log at `path`. Call its methods under its lock and from one thread; `fd` is its open file."""

    def __init__(self, path: Path, spot: Spot, folder: Folder) -> None:
        self.path: Final = path
        self._folder: Final = folder
        self.spot: Final = spot
        """The spot of its lock."""
        self.is_doubtful = False
        """True after a failed sync of lines that are still in the file. A later sync proves nothing, even if it succeeds."""
        self.forget()

    def forget(self) -> None:
        """Empty the index, so that the file is read again."""
        self._runs: dict[str, _Run] = {}
        self._identity: tuple[int, int] | None = None
        self._count = 0
        self._dead_bytes = 0
        self._tail = b""
        self._synced = True
        self.size = 0
        """How many bytes of the file are indexed. They end with a whole line."""

    def run_ids(self) -> list[str]:
        return [*self._runs]

    def marks(self) -> dict[str, tuple[int, bytes]]:
        """Return for each run how many lines it has and the checksum of the last one."""
        return {run_id: (len(run.lines), checksum_of(next(reversed(run.lines.values())))) for run_id, run in self._runs.items()}

    @property
    def is_mostly_cleared(self) -> bool:
        return self.size > _WORTH_REWRITING and self._dead_bytes * 2 > self.size

    def get(self, run_id: str, step_id: str, *, above: int = -1) -> StepRecord | None:
        """Return the step's entry with the highest revision, if that is greater than `above`."""
        run = self._runs.get(run_id)
        revision = run.newest.get(step_id, 0) if run else 0
        line = run.lines.get(slot_of(step_id, revision)) if run and revision > above else None
        return None if line is None else record_of(self.path, line)

    def newer(self, known: Sequence[Known]) -> list[StepRecord]:
        """Return the newest entry of each step that has a higher revision than the known one."""
        found = (self.get(run_id, step_id, above=revision) for run_id, step_id, revision in known)
        return [record for record in found if record is not None]

    def holds(self, run_id: str, *, alone: bool = False) -> bool:
        """Return True if the run has entries; with `alone`, if no other run has any."""
        return run_id in self._runs and not (alone and len(self._runs) > 1)

    def entries(self, run_id: str) -> RecordLines:
        run = self._runs.get(run_id)
        where = f"{self.path}, run {run_id!r}"
        return RecordLines(tuple(run.lines.values()) if run else (), where=lambda number: f"{where}, entry {number}")

    def refresh(self, fd: int, *, mend: bool = False) -> None:
        """Index what other processes wrote. With `mend`, cut off an unfinished last line: its append never returned."""
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        try:
            if identity != self._identity or status.st_size < self.size or self._tail != self._tail_of(fd):
                self.forget()
                self._folder.is_synced = False  # the process that made the file may have died before it synced
                self._identity = identity
            if status.st_size > self.size:
                self._take_in(fd, status.st_size)
        except BaseException:
            self.forget()
            raise
        if rest := status.st_size - self.size:
            check_tail(_disk.read(fd, self.size, rest), self.path)
        if mend and rest:
            os.ftruncate(fd, self.size)
            logger.warning("%s: cut off %d bytes of an append that never returned, after line %d", self.path, rest, self._count)

    def sync(self, fd: int, *, unread: bool = False) -> None:
        """Sync lines of other processes: a killed writer may not have. `unread` says that the caller did not index them."""
        if unread or not self._synced:
            try:
                _disk.sync(fd)
            except BaseException:
                self.is_doubtful = True
                raise
            self._synced = True
        self._folder.sync()

    def append(self, fd: int, entries: Iterable[Entry]) -> Generator[None, None, list[Holds]]:
        """Write the entries that have an empty slot, yield, sync, and return the holder of each entry's slot."""
        new: dict[tuple[str, Slot], bytes] = {}
        holders: list[Holds] = []
        for record, slot, line in entries:
            run = self._runs.get(record.run_id)
            first = run.lines.get(slot) if run else None
            if first is None:
                first = new.setdefault((record.run_id, slot), line)
            try:
                holders.append(record if first is line else record_of(self.path, first))
            except StoreError as error:
                holders.append(error)
        if new:
            yield from self._write(fd, [*new.values()])
            for (run_id, slot), line in new.items():
                self._claim(run_id, slot, line)
        else:
            self.sync(fd)
        return holders

    def clear(self, fd: int, run_id: str) -> None:
        """Append a line that clears the run."""
        line = clear_line(run_id)
        for _ in self._write(fd, [line]):
            pass
        self._drop(run_id, line)

    def remove(self) -> None:
        """Remove the file."""
        self.forget()
        _disk.remove(self.path)

    def rewrite(self) -> None:
        """Write all entries that are not cleared to a new file, and replace the log with it."""
        beside = self.path.with_name(self.path.name + ".new")
        try:
            with _disk.OpenFile(self.path, _disk.READ) as fd:
                self.refresh(fd)
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
            with _disk.OpenFile(beside, _disk.APPEND | os.O_TRUNC) as fd:
                beside.chmod(mode)
                for run in self._runs.values():
                    lines = iter(run.lines.values())
                    while some := [*islice(lines, 1000)]:
                        _disk.write(fd, b"\n".join(some) + b"\n")
                _disk.sync(fd)
            beside.replace(self.path)
            _disk.sync_folder(self.path.parent)
            self.is_doubtful = False
        except FileNotFoundError:  # somebody removed the log meanwhile
            self.is_doubtful = False
        finally:
            self.forget()
            with suppress(FileNotFoundError):
                beside.unlink()

    def _tail_of(self, fd: int) -> bytes:
        return _disk.read(fd, self.size - len(self._tail), len(self._tail))

    def _take_in(self, fd: int, end: int) -> None:
        for lines in _disk.read_lines(fd, self.size, end):
            for number, line in enumerate(lines, self._count + 1):
                key = read_key(line, self.path, number)
                if key.clear is not None:
                    self._drop(key.clear, line)
                elif self._claim(key.run_id, slot_of(key.step_id, key.revision), line) is not line:
                    raise CorruptLog(
                        f"{self.path}, line {number}: revision {key.revision} of step {key.step_id!r} of run {key.run_id!r}"
                        " is here for the second time; two writers didn't see each other's locks, or two logs were joined"
                    )
            self._advance(lines)
            self._synced = False

    def _write(self, fd: int, lines: list[bytes]) -> Generator[None, None, None]:
        try:
            _disk.write(fd, b"\n".join(lines) + b"\n")
            yield
            self._folder.sync()
            _disk.sync(fd)
        except BaseException:
            self._cut_back(fd)
            raise
        self._advance(lines)
        self._synced = True

    def _cut_back(self, fd: int) -> None:
        """Cut the file back to its last synced length after a failed write or sync."""
        try:
            os.ftruncate(fd, self.size)
            _disk.sync(fd)
        except OSError:
            self.is_doubtful = True
        else:
            self.is_doubtful |= not self._synced

    def _advance(self, lines: list[bytes]) -> None:
        if lines:
            self.size += sum(map(len, lines)) + len(lines)
            self._count += len(lines)
            self._tail = lines[-1][-_TAIL:] + b"\n"

    def _claim(self, run_id: str, slot: Slot, line: bytes) -> bytes:
        """Put the line into its slot if the slot is empty. Return the line that holds the slot."""
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Run()
        if type(slot) is tuple:
            step_id, revision = slot
            run.newest[step_id] = max(revision, run.newest.get(step_id, 0))
        return run.lines.setdefault(slot, line)

    def _drop(self, run_id: str, line: bytes) -> None:
        """Remove from the index the run that `line` clears."""
        run = self._runs.pop(run_id, None)
        dead = [line, *(run.lines.values() if run else ())]
        self._dead_bytes += sum(map(len, dead)) + len(dead)
