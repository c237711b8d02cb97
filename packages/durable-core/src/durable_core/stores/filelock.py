"""Locks of the operating system: each is a byte of a lock file, found by a hash of the lock's name."""

from __future__ import annotations

import errno
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from durable_core.errors import StoreError
from durable_core.store import Holder, forks

LOCK_FOLDER: Final = ".durable.locks"
RUN_FILES: Final = 64
"""How many files the locks of runs are spread over: a system takes longer the more locks of one file are held."""
_BINARY: Final = getattr(os, "O_BINARY", 0)
_LONGEST_PAUSE: Final = 0.005
# A system call lets another thread run: one before each step would double what steps cost.
_LOOK_AGAIN: Final = 0.05
# The notes lie in front of the locks. Two locks share a note by chance only, and then one holder is not known.
_NOTES: Final = 256
_NOTE_SIZE: Final = 256
_LOCKS_FROM: Final = _NOTES * _NOTE_SIZE

Spot = tuple[str, int]
"""Where a lock is: the name of a lock file, and the byte in it."""


def spot_of(kind: str, *names: str, files: int = 1) -> Spot:
    """Return the spot of the lock with these names, in one of so many `files` of its kind."""
    digest = int.from_bytes(blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest())
    return f"{kind}-{digest % files:02}", _LOCKS_FROM + digest // files % (LAST - _LOCKS_FROM)


def gate_of(spot: Spot) -> Spot:
    """Return the lock that is held by whoever waits for the one at `spot`."""
    return spot[0], spot[1] + 1


class Locks:
    """The locks of one folder, for one store. Safe to use from several threads.

    Lock files are made when they are needed, in a folder of their own, and never removed. `make_folder` makes the folder that
    this one lies in. Within one process every lock is exclusive.
    """

    def __init__(self, folder: Path, *, make_folder: Callable[[Path], None], wait_limit: float = 30.0) -> None:
        self._folder: Final = folder / LOCK_FOLDER
        self._make_folder: Final = make_folder
        self._wait_limit: Final = wait_limit
        self._files: Final[dict[str, _LockFile]] = {}
        self._paths: Final[dict[str, Path]] = {}

    def take(self, spot: Spot, *, shared: bool = False, note: bool = False, make: bool = True) -> Lock | None:
        """Take a lock, or return None where another holds it; `note` writes down who took it.

        Without `make`, a lock file that may only be read is good enough, and `FileNotFoundError` is raised where there is none.
        """
        _notice_fork()
        name, position = spot
        path = self._path(name)
        while True:
            with _mutex:  # not held while the system is asked: threads that lock other bytes don't wait
                file = self._use(name, path, make=make)
                lock = Lock(file, position, path, _Note.of_this_process(position) if note else None)
                if is_first := file.locks.setdefault(position, lock) is lock:
                    file.users += 1
            try:
                is_taken = is_first and lock_byte(file.fd, position, shared=shared)
                is_there = file.is_at(path)
                if is_taken and is_there:
                    if lock.note is not None:
                        _write_note(file.fd, lock.note)
                    return lock
            except BaseException:  # a full disk must not leave a lock that nobody can give back
                lock.release()
                raise
            lock.release()
            if is_there:
                return None
            with _mutex:  # the file was removed, and perhaps made again
                self._drop(name)

    def wait(self, spot: Spot, *, shared: bool) -> Lock | None:
        """Take a lock that nobody holds for long as soon as it is free. Raises `StoreError` after `wait_limit` seconds.

        Returns None for a shared lock where there is no lock file that may be read, and none can be made.
        """
        if not shared and (lock := self.take(spot)):
            return lock
        # Who has to wait holds the gate meanwhile, and every reader passes it: readers that overlap would keep a writer out.
        deadline = time.monotonic() + self._wait_limit
        try:
            gate = self._wait(gate_of(spot), deadline)
        except OSError as error:
            if not shared or error.errno not in _DENIED:
                raise
            with suppress(FileNotFoundError, PermissionError):
                return self._wait(spot, deadline, shared=True, make=False)
            return None
        try:
            return self._wait(spot, deadline, shared=shared)
        finally:
            gate.release()

    def holder(self, spot: Spot) -> Holder | None:
        """Return who holds a lock, as far as is known, or None where nobody does. Takes no lock, and makes no file."""
        _notice_fork()
        name, position = spot
        path = self._path(name)
        with _mutex:
            try:
                if not self._use(name, path, make=False).is_at(path):
                    self._drop(name)
                file = self._use(name, path, make=False)
            except FileNotFoundError:
                return None
            if (own := file.locks.get(position)) and own.note:
                return Holder(f"another runner in this process ({own.note.pid})", own.note.since)
            if not is_locked(file.fd, position):
                return None
            note = _read_note(file.fd, position)
        return Holder(str(note), note.since) if note else Holder("another process", None)

    def close(self) -> None:
        """Close the lock files, but for those in which a lock is held, or that another store uses."""
        with _mutex:
            for name in [*self._files]:
                self._drop(name)

    def _wait(self, spot: Spot, deadline: float, *, shared: bool = False, make: bool = True) -> Lock:
        pause = 0.0001
        while (lock := self.take(spot, shared=shared, make=make)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has kept the log locked by {self._folder} for {self._wait_limit:g} s; is it stopped?"
                )
            time.sleep(pause * random.random())
            pause = min(pause * 2, _LONGEST_PAUSE)
        return lock

    def _path(self, name: str) -> Path:
        path = self._paths.get(name)
        return path or self._paths.setdefault(name, self._folder / name)

    def _use(self, name: str, path: Path, *, make: bool) -> _LockFile:
        """Return the lock file of that name; what it was opened as may not be at its path any more."""
        file = self._files.get(name)
        if file is not None:
            if file.is_writable or not make:
                return file
            self._drop(name)
        file = _find(path, make=make) or self._open(path, make=make)
        file.users += 1
        self._files[name] = file
        return file

    def _drop(self, name: str) -> None:
        if file := self._files.pop(name, None):
            _leave(file)

    def _open(self, path: Path, *, make: bool) -> _LockFile:
        is_writable = True
        try:
            fd = os.open(path, os.O_RDWR | _BINARY | (os.O_CREAT if make else 0), 0o600)
        except FileNotFoundError:
            if not make:
                raise
            self._make_folder(self._folder.parent)
            with suppress(FileExistsError):
                self._folder.mkdir(0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o600)
        except OSError as error:
            if make or error.errno not in _DENIED:
                raise
            is_writable, fd = False, os.open(path, os.O_RDONLY | _BINARY)
        file = _LockFile(fd, is_writable)
        _files[*file.identity, is_writable] = file
        return file


class Lock:
    """A lock that was taken."""

    __slots__ = ("_file", "_path", "_position", "note")

    def __init__(self, file: _LockFile, position: int, path: Path, note: _Note | None) -> None:
        self._file: Final = file
        self._position: Final = position
        self._path: Final = path
        self.note: Final = note

    def loss(self) -> str:
        """Say why this process doesn't hold the lock any more; empty while it does. Looks for its file every 50 ms at most."""
        _notice_fork()
        if self._file.locks.get(self._position) is not self:  # a forked child inherits none
            return f"this process ({os.getpid()}) does not hold its lock, which was given back, or is a parent process's"
        now = time.monotonic()
        if now < self._file.sure_until:
            return ""
        with suppress(OSError):
            if self._file.is_at(self._path):
                self._file.sure_until = now + _LOOK_AGAIN
                return ""
        return f"its lock file {self._path} was removed or replaced, and others may take the lock"

    def release(self) -> None:
        """Give the lock back."""
        _notice_fork()
        if self._file.locks.get(self._position) is self:
            unlock_byte(self._file.fd, self._position)
            with _mutex:
                del self._file.locks[self._position]
                _leave(self._file)


class _LockFile:
    """An open lock file: one for all of a process, whose threads the system's locks don't keep apart."""

    def __init__(self, fd: int, is_writable: bool) -> None:
        status = os.fstat(fd)
        self.fd: Final = fd
        self.is_writable: Final = is_writable
        self.identity: Final = (status.st_dev, status.st_ino)
        self.locks: Final[dict[int, Lock]] = {}
        """Those that this process holds or is about to take, by position."""
        self.users = 0
        self.sure_until = 0.0
        """When holders have to look again whether it is where it was, in monotonic time."""

    def is_at(self, path: Path) -> bool:
        """Return True if the path names this file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


# Guards what the process has open.
_mutex = threading.Lock()
_files: Final[dict[tuple[int, int, bool], _LockFile]] = {}
_noticed = forks()
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def _find(path: Path, *, make: bool) -> _LockFile | None:
    """Return the lock file at the path if this process has it open."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    place = status.st_dev, status.st_ino
    return _files.get((*place, True)) or (None if make else _files.get((*place, False)))


def _leave(file: _LockFile) -> None:
    file.users -= 1
    place = *file.identity, file.is_writable
    if not file.users and _files.get(place) is file:
        del _files[place]
        os.close(file.fd)


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
        file.locks.clear()
    _files.clear()


if hasattr(os, "register_at_fork"):
    # The mutex is looked up when it is used, since a child has a new one.
    os.register_at_fork(
        before=lambda: _mutex.acquire() and None, after_in_parent=lambda: _mutex.release(), after_in_child=_forget_all
    )


class _Note(msgspec.Struct, frozen=True, gc=False):
    """A process that took the lock at `position`, written down for those who find it taken."""

    position: int
    pid: int
    host: str
    program: str
    since: datetime

    @classmethod
    def of_this_process(cls, position: int) -> _Note:
        return cls(position, os.getpid(), *_host_and_program(), datetime.now(UTC))

    def __str__(self) -> str:
        return f"process {self.pid} on {_clean(self.host)} ({_clean(self.program)})"


@cache
def _host_and_program() -> tuple[str, str]:
    argv = getattr(sys, "argv", None) or [""]
    return _clean(platform.node()), _clean(Path(argv[0]).name or "python")


_decode_note: Final = msgspec.json.Decoder(_Note).decode


def _clean(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isprintable())[:40]


def _write_note(fd: int, note: _Note) -> None:
    text = msgspec.json.encode(note).ljust(_NOTE_SIZE - 1) + b"\n"
    write_at(fd, text, note.position % _NOTES * _NOTE_SIZE)


def _read_note(fd: int, position: int) -> _Note | None:
    try:
        note = _decode_note(read_at(fd, _NOTE_SIZE, position % _NOTES * _NOTE_SIZE))
    except msgspec.DecodeError:
        return None
    return note if note.position == position else None


if sys.platform == "win32":
    import msvcrt

    LAST = 2**31 - 2  # the greatest position that msvcrt is sure to take, but for a gate
    _place = threading.Lock()  # held while a file's one position is used

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte; False where another process holds it. Windows has no shared kind here: every lock is exclusive."""
        with _place:
            os.lseek(fd, position, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        """Unlock a byte, if this process holds it."""
        with _place, suppress(PermissionError):
            os.lseek(fd, position, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

    def write_at(fd: int, data: bytes, position: int) -> None:
        with _place:
            os.lseek(fd, position, os.SEEK_SET)
            os.write(fd, data)

    def read_at(fd: int, size: int, position: int) -> bytes:
        with _place:
            os.lseek(fd, position, os.SEEK_SET)
            return os.read(fd, size)

else:
    import fcntl
    from struct import pack, unpack_from

    LAST = 2**62
    # Linux's own kind belongs to the open file. The older one, all that macOS offers, belongs to the process, which loses its
    # locks on a file when it closes any descriptor of it: this is why a process opens a lock file once.
    HAS_OPEN_FILE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte; False where another process holds it."""
        try:
            if HAS_OPEN_FILE_LOCKS:
                _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, position)
            else:
                fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, position)
        except (BlockingIOError, PermissionError):  # POSIX allows a system to say either
            return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        """Unlock a byte, if this process holds it."""
        if HAS_OPEN_FILE_LOCKS:
            _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, position)
        else:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, position)

    def write_at(fd: int, data: bytes, position: int) -> None:
        os.pwrite(fd, data, position)

    def read_at(fd: int, size: int, position: int) -> bytes:
        return os.pread(fd, size, position)

    def _ask(fd: int, command: int, kind: int, position: int) -> int:
        """Pass the system's struct flock, and return the kind of lock that it answers."""
        answer: int = unpack_from("h", fcntl.fcntl(fd, command, pack("hhqqi0q", kind, os.SEEK_SET, position, 1, 0)))[0]
        return answer


def is_locked(fd: int, position: int) -> bool:
    """Return True if another process holds the byte."""
    if sys.platform != "win32" and HAS_OPEN_FILE_LOCKS:
        return _ask(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, position) != fcntl.F_UNLCK
    if not lock_byte(fd, position, shared=True):  # other systems can only try
        return True
    unlock_byte(fd, position)
    return False
