"""Reading without an index: a long log piece by piece, which run a log holds, and whether a log changed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path

from durable_core import StoreError

from . import _disk
from ._explain import explain_errors
from ._lines import check_tail, is_clear, read_key
from ._log import logger
from ._logs import Logs
from ._names import SUFFIX, file_name, plain_run_id

Status = tuple[int, int, int, int]
"""Device, inode, size and time of a file."""

Named = dict[str, tuple[str | None, Status]]
"""Of each log whose name doesn't tell its run that run, or None and the status with which it told none."""


def scan(logs: Logs, name: str, run_id: str) -> Generator[list[bytes], None, None]:
    """Yield the run's lines in each piece of its log as it is now; later changes, even a removal, are not seen."""
    opened = logs.open_whole(name)
    if opened is None:
        return
    fd, end = opened
    path = logs.path(name)
    try:
        with explain_errors("read", path):
            cleared = _last_clear(fd, end, path, run_id)
            number = 0
            for piece in _disk.read_lines(fd, 0, end):
                lines = []
                for line in piece:
                    number += 1
                    key = read_key(line, path, number)
                    if number > cleared and key.run_id == run_id:
                        lines.append(line)
                yield lines
    finally:
        os.close(fd)


def _last_clear(fd: int, end: int, path: Path, run_id: str) -> int:
    """Return the number of the line that last cleared the run, or 0."""
    last = number = 0
    for piece in _disk.read_lines(fd, 0, end):
        for line in piece:
            number += 1
            if is_clear(line) and read_key(line, path, number).clear == run_id:
                last = number
    return last


def log_names(folder: Path) -> list[str]:
    """Return the names of the logs in the folder."""
    with explain_errors("read", folder), suppress(FileNotFoundError), os.scandir(folder) as files:
        return [file.name for file in files if file.name.endswith(SUFFIX) and file.is_file()]
    return []


def runs_in(folder: Path, names: list[str], prefix: str) -> tuple[list[str], list[StoreError]]:
    """Return the runs that have an entry in these logs of a folder and whose ids start with `prefix`; and what can't be read."""
    runs, errors = [], []
    for name in names:
        plain = plain_run_id(name)
        if plain is None or plain.startswith(prefix):
            try:
                run_id = _first_run(folder / name)
            except StoreError as error:
                errors.append(error)
                continue
            # A file of another name is not this folder's: a copy, or a log of several runs.
            if run_id is not None and run_id.startswith(prefix) and file_name(run_id) == name:
                runs.append(run_id)
    return runs, errors


def _first_run(path: Path) -> str | None:
    """Return the run of the log's first line, or None where there is no whole line."""
    with explain_errors("read", path), suppress(FileNotFoundError), path.open("rb") as file:  # it may be cleared just now
        if (line := file.readline()).endswith(b"\n"):
            return read_key(line[:-1], path, 1).run_id
        check_tail(line, path)
    return None


def marks_in(folder: Path, names: Iterable[str], prefix: str, named: Named) -> dict[str, Status]:
    """Return for each run with a log of one of these names, and an id that starts with `prefix`, the status of that log.

    A log is opened only where its name doesn't tell its run, and once. One that can't be read is told and passed over.
    """
    marks = {}
    for name, status in statuses_of(folder, names).items():
        run_id = plain_run_id(name)
        if run_id is None:
            run_id, seen = named.get(name, (None, None))
            if run_id is None and status != seen:
                run_id = _run_in(folder, name)
                named[name] = run_id, status
        if run_id is not None and run_id.startswith(prefix):
            marks[run_id] = status
    return marks


def _run_in(folder: Path, name: str) -> str | None:
    runs, errors = runs_in(folder, [name], "")
    for error in errors:
        logger.warning("a run is passed over: %s", error)
    return next(iter(runs), None)


def statuses_of(folder: Path, names: Iterable[str]) -> dict[str, Status]:
    """Return the status of each of these logs that is there."""
    statuses: dict[str, Status] = {}
    for name in names:
        with suppress(OSError):
            stat = os.stat(f"{folder}{os.sep}{name}")  # noqa: PTH116  # half the time of a Path's
            statuses[name] = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    return statuses
