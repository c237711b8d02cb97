"""Reading without an index: a long log piece by piece, and which run a log holds."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

from . import _disk
from ._explain import explain_errors
from ._lines import is_clear, read_key
from ._logs import Logs
from ._names import SUFFIX, file_name, plain_run_id


def scan(logs: Logs, name: str, run_id: str) -> Generator[list[bytes], None, None]:
    """Yield the run's lines in each piece of its log as it is now: what happens to it later, a removal even, is not seen."""
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
                mine = []
                for line in piece:
                    number += 1
                    key = read_key(line, path, number)
                    if number > cleared and key.run_id == run_id:
                        mine.append(line)
                yield mine
    finally:
        os.close(fd)


def _last_clear(fd: int, end: int, path: Path, run_id: str) -> int:
    """Return the number of the line that last cleared the run, or 0."""
    found = number = 0
    for piece in _disk.read_lines(fd, 0, end):
        for line in piece:
            number += 1
            if is_clear(line) and read_key(line, path, number).clear == run_id:
                found = number
    return found


def log_names(folder: Path) -> list[str]:
    """Return the names of the logs in the folder."""
    with explain_errors("read", folder):
        try:
            with os.scandir(folder) as found:
                return [entry.name for entry in found if entry.name.endswith(SUFFIX) and entry.is_file()]
        except FileNotFoundError:
            return []


def runs_in(folder: Path, names: list[str], prefix: str) -> list[str]:
    """Return the runs, of those whose ids start with `prefix`, that have an entry in the named logs of a folder."""
    found = []
    for name in names:
        plain = plain_run_id(name)
        if plain is None or plain.startswith(prefix):
            run_id = _first_run(folder / name)
            # A file of another name is not this folder's: a copy, or a log of several runs.
            if run_id is not None and run_id.startswith(prefix) and file_name(run_id) == name:
                found.append(run_id)
    return found


def _first_run(path: Path) -> str | None:
    with explain_errors("read", path), suppress(FileNotFoundError), path.open("rb") as file:  # it may be cleared just now
        if (line := file.readline()).endswith(b"\n"):
            return read_key(line[:-1], path, 1).run_id
    return None
