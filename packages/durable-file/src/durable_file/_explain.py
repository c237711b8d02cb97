"""Errors about files that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from durable_core import StoreError

_FULL: Final = frozenset(getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT") if hasattr(errno, name))


class NoRoom(StoreError):
    """The disk had no room for the data. Something smaller may still fit."""


@contextmanager
def explain_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn any `OSError` into a `StoreError` that says what failed, for which file, why, and what to do."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if error.errno in _FULL else StoreError
        raise kind(f"can't {doing} {path}: {_reason(error, path)}") from error


def _reason(error: OSError, path: Path) -> str:
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, but a path that ends in .jsonl is one log; name another path"
    if isinstance(error, NotADirectoryError | FileExistsError):
        blocking = next((above for above in (path, *path.parents) if above.exists() and not above.is_dir()), path)
        return f"{blocking} is a file where a folder is needed; for one log in one file, end the path in .jsonl"
    if isinstance(error, PermissionError):
        return f"{error.strerror}; the folder and its files must be readable and writable for this user"
    return f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'no code')})"
