"""Reading without an index: a long log piece by piece, and which run a log holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from . import _disk
from ._explain import explain_errors
from ._lines import is_clear, read_key
from ._logs import Logs
from ._names import SUFFIX, file_name, plain_run_id

_FIRST: Final = 4096


class Scan:
    """One pass over a run's lines, in one thread."""

    def __init__(self, logs: Logs, name: str, run_id: str) -> None:
        self._logs: Final = logs
        self._name: Final = name
        self._path: Final = logs.path(name)
        self._run_id: Final = run_id
        self._fd = -1
        self._pieces: Iterator[list[bytes]] = iter(())

    def open(self) -> None:
        """Open the log as it is now: what happens to it later, a removal even, is not seen."""
        opened = self._logs.open_whole(self._name)
        if opened is not None:
            self._fd, end = opened
            self._pieces = self._read(end)

    def next_lines(self) -> list[bytes] | None:
        """Return the run's lines in the next piece of the log, or None at its end."""
        with explain_errors("read", self._path):
            return next(self._pieces, None)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, end: int) -> Iterator[list[bytes]]:
        cleared = self._last_clear(end)
        number = 0
        for piece in _disk.read_lines(self._fd, 0, end):
            mine = []
            for line in piece:
                number += 1
                key = read_key(line, self._path, number)
                if number > cleared and key.run_id == self._run_id:
                    mine.append(line)
            yield mine

    def _last_clear(self, end: int) -> int:
        """Return the number of the line that last cleared the run, or 0."""
        found = number = 0
        for piece in _disk.read_lines(self._fd, 0, end):
            for line in piece:
                number += 1
                if is_clear(line) and read_key(line, self._path, number).clear == self._run_id:
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
    with explain_errors("read", path):
        try:
            with _disk.OpenFile(path, _disk.READ) as fd:
                for lines in _disk.read_lines(fd, 0, os.fstat(fd).st_size, chunk=_FIRST):
                    if lines:
                        return read_key(lines[0], path, 1).run_id
        except FileNotFoundError:  # cleared just now
            pass
    return None
