"""Reading without an index: scanning a long log, finding the run of a log, and seeing whether a log changed."""

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
"""A file's device, inode, size and modification time."""

Named = dict[str, tuple[str | None, Status]]
"""The runs of logs with a hashed name: for each log its run, or None, and the log's status when it was read."""


def scan(logs: Logs, name: str, run_id: str) -> Generator[list[bytes], None, None]:
    """Yield the run's lines, a piece of its log at a time. Does not see later changes, not even a removal."""
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
    """Return the runs of these logs that start with `prefix`, and the errors of logs that can't be read."""
    runs, errors = [], []
    for name in names:
        plain = plain_run_id(name)
        if plain is None or plain.startswith(prefix):
            try:
                run_id = _first_run(folder / name)
            except StoreError as error:
                errors.append(error)
                continue
            # A file with another name does not belong here: it is a copy, or a log of several runs.
            if run_id is not None and run_id.startswith(prefix) and file_name(run_id) == name:
                runs.append(run_id)
    return runs, errors


def _first_run(path: Path) -> str | None:
    """Return the run of the log's first line. None if there is no whole line."""
    with explain_errors("read", path), suppress(FileNotFoundError), path.open("rb") as file:  # it may have been cleared
        if (line := file.readline()).endswith(b"\n"):
            return read_key(line[:-1], path, 1).run_id
        check_tail(line, path)
    return None


def marks_in(folder: Path, names: Iterable[str], prefix: str, named: Named) -> dict[str, Status]:
    """Return the log's status for each run that has one of these logs and starts with `prefix`.

    Opens only logs with a hashed name, each once. Logs a warning for one that can't be read, and passes over it.
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
    """Return the status of each of these logs that exists."""
    statuses: dict[str, Status] = {}
    for name in names:
        with suppress(OSError):
            stat = os.stat(f"{folder}{os.sep}{name}")  # noqa: PTH116  # half the time of a Path's
            statuses[name] = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    return statuses
