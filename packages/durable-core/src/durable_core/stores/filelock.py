"""Locks of the operating system: each is a byte of a folder's lock file, found by a hash of the lock's name."""

from __future__ import annotations

import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from durable_core.errors import StoreError
from durable_core.store import forks

LOCK_FILE: Final = ".durable.lock"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_LONGEST_PAUSE: Final = 0.005


def position_of(*names: str) -> int:
    """Return the byte that stands for the lock with these names."""
    digest = blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest()
    return TABLE + int.from_bytes(digest) % (LAST - TABLE)


class Locks:
    """The locks of one folder, for one store. Safe to use from several threads."""

    def __init__(self, folder: Path, *, make_folder: Callable[[Path], None], wait_limit: float = 30.0) -> None:
        self._path: Final = folder / LOCK_FILE
        self._make_folder: Final = make_folder
        self._wait_limit: Final = wait_limit
        self._file: _LockFile | None = None

    def take(self, position: int, *, shared: bool = False, named: bool = False) -> Lock | None:
        """Take a lock, or return None where another holds it; `named` writes down who took it.

        Within one process every lock is exclusive.
        """
        _notice_fork()
        with _mutex:
            while True:
                file = self._file or _open(self._path, self._make_folder)
                self._file = file
                taken = position not in file.held and lock_byte(file.fd, position, shared=shared)
                if _identity(self._path) == file.identity:
                    break
                if taken:
                    unlock_byte(file.fd, position)
                self._file = None  # the folder was removed, and perhaps made again
                _leave(file)
            if not taken:
                return None
            holder = Holder.here(position) if named else None
            if holder is not None:
                try:
                    write_holder(file.fd, holder)
                except BaseException:  # a full disk must not leave a lock that nobody can give back
                    unlock_byte(file.fd, position)
                    raise
            file.users += 1
            file.held[position] = holder
            return Lock(file, position)

    def holder(self, position: int) -> Holder | None:
        """Tell who holds a lock that was just found taken, as far as is known."""
        _notice_fork()
        with _mutex:
            file = self._file
            if file is None:
                return None
            return file.held.get(position) or read_holder(file.fd, position)

    def wait(self, position: int, *, shared: bool) -> Lock:
        """Take a lock that nobody holds for long as soon as it is free. Raises `StoreError` after `wait_limit` seconds."""
        if not shared and (lock := self.take(position)):
            return lock
        # Who has to wait holds the gate meanwhile, and every reader passes it: readers that overlap would keep a writer out.
        deadline = time.monotonic() + self._wait_limit
        gate = self._wait(position_of("gate", str(position)), deadline)
        try:
            return self._wait(position, deadline, shared=shared)
        finally:
            gate.release()

    def _wait(self, position: int, deadline: float, *, shared: bool = False) -> Lock:
        pause = 0.0001
        while (lock := self.take(position, shared=shared)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has kept the log locked by {self._path} for {self._wait_limit:g} s; is it stopped?"
                )
            time.sleep(pause * random.random())
            pause = min(pause * 2, _LONGEST_PAUSE)
        return lock

    def close(self) -> None:
        """Close the lock file, unless a lock is still held or another store uses it."""
        with _mutex:
            file, self._file = self._file, None
            if file is not None:
                _leave(file)


class Lock:
    """A lock that is held."""

    __slots__ = ("_file", "_position")

    def __init__(self, file: _LockFile, position: int) -> None:
        self._file: Final = file
        self._position: Final = position

    @property
    def held(self) -> bool:
        """False in a forked child, which inherits no lock, and after `release`."""
        _notice_fork()
        return self._position in self._file.held

    def release(self) -> None:
        _notice_fork()
        with _mutex:
            if self._position in self._file.held:
                del self._file.held[self._position]
                unlock_byte(self._file.fd, self._position)
                _leave(self._file)


class _LockFile:
    """An open lock file: one for all of a process, whose threads the system's locks don't keep apart."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.fd: Final = fd
        self.identity: Final = (status.st_dev, status.st_ino)
        self.held: Final[dict[int, Holder | None]] = {}
        self.users = 0


# Guards all lock files of the process, and the position that each is read and written at.
_mutex = threading.Lock()
_files: Final[dict[tuple[int, int], _LockFile]] = {}
_noticed = forks()


def _open(path: Path, make_folder: Callable[[Path], None]) -> _LockFile:
    identity = _identity(path)
    file = _files.get(identity) if identity else None
    if file is None:
        try:
            fd = os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            make_folder(path.parent)
            fd = os.open(path, _FLAGS, 0o600)
        file = _LockFile(fd)
        _files[file.identity] = file
    file.users += 1
    return file


def _leave(file: _LockFile) -> None:
    file.users -= 1
    if not file.users and _files.get(file.identity) is file:
        del _files[file.identity]
        os.close(file.fd)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _notice_fork() -> None:
    """Do in a child what its fork did not, where a server forked it without telling Python."""
    if forks() != _noticed:
        _forget_all()


def _forget_all() -> None:
    """In a forked child: leave every lock to the parent, and let none of them outlive it."""
    global _mutex, _noticed
    _noticed = forks()
    _mutex = threading.Lock()
    for file in _files.values():
        os.close(file.fd)
        file.held.clear()
    _files.clear()


if hasattr(os, "register_at_fork"):
    # The mutex is looked up when it is used, since a child has a new one.
    os.register_at_fork(
        before=lambda: _mutex.acquire() and None, after_in_parent=lambda: _mutex.release(), after_in_child=_forget_all
    )


# The table lies in front of the locks. A slot is shared by chance only, and then the holder is not known: 4 MiB at most.
_SLOTS: Final = 16 * 1024
_SIZE: Final = 256
TABLE: Final = _SLOTS * _SIZE


class Holder(msgspec.Struct, frozen=True):
    """A process that took the lock at `position`."""

    position: int
    pid: int
    host: str
    program: str
    since: datetime

    @classmethod
    def here(cls, position: int) -> Holder:
        return cls(position, os.getpid(), *_program(), datetime.now(UTC))

    def __str__(self) -> str:
        if self.pid == os.getpid() and self.host == _program()[0]:
            return f"another runner in this process ({self.pid})"
        return f"process {self.pid} on {self.host} ({self.program})"


_decode: Final = msgspec.json.Decoder(Holder).decode


@cache
def _program() -> tuple[str, str]:
    argv = getattr(sys, "argv", None) or [""]
    program = Path(argv[0]).name or "python"
    return _clip(platform.node()), _clip(program)


def _clip(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isprintable())[:40]


def write_holder(fd: int, holder: Holder) -> None:
    """Write down who took the lock."""
    os.lseek(fd, holder.position % _SLOTS * _SIZE, os.SEEK_SET)
    os.write(fd, msgspec.json.encode(holder).ljust(_SIZE - 1) + b"\n")


def read_holder(fd: int, position: int) -> Holder | None:
    """Return who took the lock, if that can still be read."""
    os.lseek(fd, position % _SLOTS * _SIZE, os.SEEK_SET)
    try:
        holder = _decode(os.read(fd, _SIZE))
    except msgspec.DecodeError:
        return None
    return holder if holder.position == position else None


if sys.platform == "win32":
    import msvcrt

    LAST = 2**31 - 1  # the greatest position that msvcrt is sure to take

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte; False where another process holds it. Windows has no shared kind here, so that all are exclusive."""
        os.lseek(fd, position, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        os.lseek(fd, position, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl
    from struct import pack

    LAST = 2**62
    # Linux's own kind belongs to the open file. The older one, all that macOS offers, belongs to the process, which loses its
    # locks on a file when it closes any descriptor of it: this is why a process opens a lock file once.
    OPEN_FILE_LOCK: int | None = getattr(fcntl, "F_OFD_SETLK", None)

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte; False where another process holds it."""
        try:
            if OPEN_FILE_LOCK is None:
                fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, position)
            else:
                _set(fd, OPEN_FILE_LOCK, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, position)
        except (BlockingIOError, PermissionError):  # POSIX allows a system to say either
            return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        if OPEN_FILE_LOCK is None:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, position)
        else:
            _set(fd, OPEN_FILE_LOCK, fcntl.F_UNLCK, position)

    def _set(fd: int, command: int, kind: int, position: int) -> None:
        fcntl.fcntl(fd, command, pack("hhqqi0q", kind, os.SEEK_SET, position, 1, 0))  # struct flock
