"""Calls to the disk that do the same on every system."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

if sys.platform == "darwin":
    from fcntl import F_FULLFSYNC, fcntl

_CHUNK: Final = 1024 * 1024
_pread: Final[Callable[[int, int, int], bytes] | None] = getattr(os, "pread", None)  # not on Windows
_BINARY: Final = getattr(os, "O_BINARY", 0)
# A reader also syncs, after a writer that was killed. On Windows that takes a descriptor that may write.
READ: Final = (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | _BINARY
APPEND: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | _BINARY


class OpenFile:
    """Opens a file for a `with` block. A file that it creates is private to its owner."""

    __slots__ = ("_fd",)

    def __init__(self, path: Path, flags: int) -> None:
        self._fd: Final = os.open(path, flags, 0o600)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def sync(fd: int) -> None:
    """Return once everything written to the file is on the disk."""
    if sys.platform == "darwin":  # fsync alone leaves the data in the drive's cache there
        try:
            fcntl(fd, F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
            os.fsync(fd)
    elif sys.platform == "win32":
        os.fsync(fd)
    else:
        os.fdatasync(fd)


def sync_folder(path: Path) -> None:
    """Return once the names in the folder are on the disk. Windows neither has nor needs such a call."""
    if os.name != "nt":
        with OpenFile(path, READ) as fd:
            os.fsync(fd)


def make_folder(path: Path) -> None:
    """Create the folder and its missing parents durably, private to their owner."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(0o700)
        except FileExistsError:  # another process made it, or it is a file: its first use will say so
            continue
        try:
            sync_folder(folder.parent)
        except BaseException:
            folder.rmdir()
            raise


def write(fd: int, data: bytes) -> None:
    """Append all of `data` to the file."""
    written = os.write(fd, data)
    while written < len(data):  # a disk that fills up takes part of it, then refuses the rest
        written += os.write(fd, memoryview(data)[written:])


def read(fd: int, start: int, size: int) -> bytes:
    """Read up to `size` bytes from `start`."""
    if _pread is not None:
        return _pread(fd, size, start)
    os.lseek(fd, start, os.SEEK_SET)
    return os.read(fd, size)


def read_lines(fd: int, start: int, end: int) -> Iterator[list[bytes]]:
    """Yield the whole lines between two positions, some at a time, without line ends. Leaves out an unfinished last line."""
    rest = b""
    while start < end and (data := read(fd, start, min(max(_CHUNK, len(rest)), end - start))):
        start += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield lines


def end_of_lines(fd: int, end: int) -> int:
    """Return the position after the last whole line before `end`."""
    while end:
        start = max(0, end - _CHUNK)
        if newline := read(fd, start, end - start).rfind(b"\n") + 1:
            return start + newline
        end = start
    return 0


def remove(path: Path) -> None:
    """Remove the file durably. Empty it where it can't be removed: Windows refuses while another process has it open."""
    try:
        path.unlink()
    except PermissionError:
        with OpenFile(path, APPEND) as fd:
            os.ftruncate(fd, 0)
            sync(fd)
    else:
        sync_folder(path.parent)
