"""Errors about the database that say what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from durable_core import CorruptLog, StoreError

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "another program has held it locked for {seconds:g} s; is it stopped, or in a long transaction?",
    sqlite3.SQLITE_FULL: "the disk is full, and nothing was written; it works again once there is room",
    sqlite3.SQLITE_IOERR: "the disk refused the write, or has no room for it, and nothing was written",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened; its folder must be there, readable and writable for this user",
    sqlite3.SQLITE_READONLY: "it can't be written; the file and its folder must be writable for this user",
}
ADVICE: Final = "the database was damaged or edited. Nothing was skipped or changed: restore it from a copy"
_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def code_of(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary error code. None for an error that Python's module raised itself."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def file_of(connection: sqlite3.Connection) -> str:
    """Return the path of the connection's database."""
    path: str = connection.execute("pragma database_list").fetchone()[2]
    return path


@contextmanager
def explain_errors(path: Path, *, seconds: float = 0.0) -> Iterator[None]:
    """Turn any error of SQLite or the system into a `StoreError` or `CorruptLog` that names the file and says what to do.

    `seconds` is how long the caller waited for a locked database.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = code_of(error)
        if code in _DAMAGED:
            raise CorruptLog(f"{path} is not a SQLite database, or it is damaged: {error}") from error
        if isinstance(error, sqlite3.OperationalError) and code is None:  # text that is not UTF-8
            raise CorruptLog(f"{path} is damaged: {error}") from error
        advice = _ADVICE.get(code or 0, "").format(seconds=seconds)
        raise StoreError(f"{path}: {advice}{' ' if advice else ''}({error})") from error
    except UnicodeDecodeError as error:  # SQLite's message quotes the damaged text
        raise CorruptLog(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}; it must be readable and writable for this user") from error
