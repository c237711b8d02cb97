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

from durable_core.errors import LockLost, StoreError
from durable_core.store import Holder, Lease

LOCK_FOLDER: Final = ".durable.locks"
RUN_FILES: Final = 64
"""How many files the locks of runs are spread over: a system takes longer the more locks of one file are held."""
_READ: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_WRITE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
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
    """The locks of one folder. Safe to use from several threads; within one process every lock is exclusive.

    Lock files are made when they are needed, in a folder of their own, and never removed. `make_folder` makes the folder that
    this one lies in. A process has to call a folder by one path: systems that have only locks of a process give it both of two.
    """

    def __init__(self, folder: Path, *, make_folder: Callable[[Path], None], wait_limit: float = 30.0) -> None:
        self._folder: Final = folder / LOCK_FOLDER
        self._make_folder: Final = make_folder
        self._wait_limit: Final = wait_limit

    def take(self, spot: Spot, *, shared: bool = False, note: bool = False) -> Lock | None:
        """Take a lock, or return None where another holds it; `note` writes down who took it.

        A lock file that may only be read is good enough for a shared lock.
        """
        _notice_fork()
        name, position = spot
        while True:
            with _mutex:  # not held while the system is asked: threads that lock other bytes don't wait
                file = self._file(name, shared=shared)
                lock = Lock(file, position, datetime.now(UTC) if note else None)
                is_first = file.locks.setdefault(position, lock) is lock
            try:
                is_taken = is_first and lock_byte(file.fd, position, shared=shared)
                is_there = file.is_there()
                if is_taken and is_there:
                    if lock.since:
                        _write_note(file.fd, position, lock.since)
                    return lock
            except BaseException:  # a full disk must not leave a lock that nobody can give back
                lock.release()
                raise
            lock.release()
            if is_there:
                return None
            with _mutex:  # the file was removed, and perhaps made again
                file.close()

    def wait(self, spot: Spot, *, shared: bool) -> Lock | None:
        """Take a lock that nobody holds for long as soon as it is free. Raises `StoreError` after `wait_limit` seconds.

        Returns None for a shared lock where there is no lock file that may be read, and none can be made.
        """
        deadline = time.monotonic() + self._wait_limit
        try:
            # Who has to wait holds the gate, and every reader passes it: readers that overlap would keep a writer out.
            gate = self._wait(gate_of(spot), deadline, shared=shared)
            try:
                return self._wait(spot, deadline, shared=shared)
            finally:
                gate.release()
        except OSError as error:
            if shared and error.errno in {*_DENIED, errno.ENOENT}:
                return None
            raise

    def holder(self, spot: Spot) -> Holder | None:
        """Return who holds a lock, as far as is known, or None where nobody does. Takes no lock, and makes no file."""
        _notice_fork()
        name, position = spot
        path = self._path(name)
        with _mutex:
            if (known := _files.get(path)) and not known.is_there():
                known.close()
            try:
                file = _files.get(path) or _LockFile(path, _READ)
            except FileNotFoundError:
                return None
            if (own := file.locks.get(position)) and own.since:
                return Holder(f"another runner in this process ({os.getpid()})", own.since)
            return _read_note(file.fd, position) if is_locked(file.fd, position) else None

    def close(self) -> None:
        """Close the lock files in which no lock is held; who needs one again opens it."""
        with _mutex:
            for path, file in [*_files.items()]:
                if path.startswith(self._path("")) and not file.locks:
                    file.close()

    def _wait(self, spot: Spot, deadline: float, *, shared: bool) -> Lock:
        pause = 0.0001
        while (lock := self.take(spot, shared=shared)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has kept the log locked by {self._folder} for {self._wait_limit:g} s; is it stopped?"
                )
            time.sleep(pause * random.random())
            pause = min(pause * 2, _LONGEST_PAUSE)
        return lock

    def _path(self, name: str) -> str:
        return f"{self._folder}{os.sep}{name}"

    def _file(self, name: str, *, shared: bool) -> _LockFile:
        """Return the lock file of that name, which may not be at its path any more."""
        path = self._path(name)
        if file := _files.get(path):
            if file.is_writable or shared:
                return file
            file.close()
        try:
            if not self._folder.exists():
                self._make_folder(self._folder.parent)
                self._folder.mkdir(0o700, exist_ok=True)
            return _LockFile(path, _WRITE)
        except OSError as error:
            if not shared or error.errno not in _DENIED:
                raise
            return _LockFile(path, _READ)


class Lock:
    """A lock that was taken; `since` stands in its note, where it has one."""

    __slots__ = ("_file", "_position", "since")

    def __init__(self, file: _LockFile, position: int, since: datetime | None) -> None:
        self._file: Final = file
        self._position: Final = position
        self.since: Final = since

    def loss(self) -> str:
        """Say why this process doesn't hold the lock any more; empty while it does. Looks for its file every 50 ms at most."""
        _notice_fork()
        if self._file.locks.get(self._position) is not self:  # a forked child inherits none
            return f"this process ({os.getpid()}) does not hold its lock: it was released, or it belongs to a parent process"
        now = time.monotonic()
        if now < self._file.sure_until:
            return ""
        with suppress(OSError):
            if self._file.is_there():
                self._file.sure_until = now + _LOOK_AGAIN
                return ""
        return f"its lock file {self._file.path} was removed or replaced, so other processes may take the lock"

    def release(self) -> None:
        """Give the lock back."""
        _notice_fork()
        if self._file.locks.get(self._position) is self:
            unlock_byte(self._file.fd, self._position)
            with _mutex:
                del self._file.locks[self._position]
                if _files.get(self._file.path) is not self._file:
                    self._file.close()


class RunLock(Lease):
    """The system's lock on a run, which goes with the process."""

    def __init__(self, run_id: str, locks: Locks, spot: Spot) -> None:
        self._run_id: Final = run_id
        self._locks: Final = locks
        self._spot: Final = spot
        self._lock: Lock | None = None

    def take(self) -> bool:
        """Take the lock; False where another holds it."""
        self._lock = self._locks.take(self._spot, note=True)
        return self._lock is not None

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._lock is not None:
            self._lock.release()

    def check(self) -> None:
        if self._lock is not None and (loss := self._lock.loss()):
            raise LockLost(f"run {self._run_id!r}: {loss}")


class _LockFile:
    """An open lock file: one for all of a process, whose threads the system's locks don't keep apart."""

    def __init__(self, path: str, flags: int) -> None:
        self.path: Final = path
        self.is_writable: Final = flags == _WRITE
        self.fd: int = os.open(path, flags, 0o600)
        self._status: Final = os.fstat(self.fd)
        self.locks: Final[dict[int, Lock]] = {}
        """Those that this process holds or is about to take, by position."""
        self.sure_until: float = 0.0
        """When holders have to look again whether it is where it was, in monotonic time."""
        _files[path] = self

    def is_there(self) -> bool:
        """Return True if its path still names this file."""
        try:
            return os.path.samestat(os.stat(self.path), self._status)  # noqa: PTH116  # half the time of a Path's
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let the next one open it anew; it is closed once no lock is held in it."""
        if _files.get(self.path) is self:
            del _files[self.path]
        if not self.locks and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


# Guards what the process has open. Looked up when it is used, since a forked child has a new one.
_mutex = threading.RLock()
_files: Final[dict[str, _LockFile]] = {}
_process = os.getpid()


def _notice_fork() -> None:
    """Do in a child what its fork did not, where a server forked it without telling Python."""
    if os.getpid() != _process:
        _forget_all()


def _forget_all() -> None:
    """In a forked child: leave every lock to the parent, and let none of them outlive it."""
    global _mutex, _process
    _process, _mutex = os.getpid(), threading.RLock()
    for file in [*_files.values()]:
        file.locks.clear()
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _mutex.acquire() and None, after_in_parent=lambda: _mutex.release(), after_in_child=_forget_all
    )


@cache
def _program() -> str:
    argv = getattr(sys, "argv", None) or [""]
    return f"on {_clean(platform.node())} ({_clean(Path(argv[0]).name or 'python')})"


def _clean(text: str, limit: int = 40) -> str:
    return "".join(character for character in text if character.isascii() and character.isprintable())[:limit]


def _write_note(fd: int, position: int, since: datetime) -> None:
    note = msgspec.json.encode((position, f"process {os.getpid()} {_program()}", since))
    with _mutex:
        os.lseek(fd, position % _NOTES * _NOTE_SIZE, os.SEEK_SET)
        os.write(fd, note.ljust(_NOTE_SIZE - 1) + b"\n")


def _read_note(fd: int, position: int) -> Holder:
    os.lseek(fd, position % _NOTES * _NOTE_SIZE, os.SEEK_SET)
    with suppress(msgspec.DecodeError):
        noted, name, since = msgspec.json.decode(os.read(fd, _NOTE_SIZE), type=tuple[int, str, datetime])
        if noted == position:
            return Holder(_clean(name, _NOTE_SIZE), since)
    return Holder("another process", None)


if sys.platform == "win32":
    import msvcrt

    LAST = 2**31 - 2  # the greatest position that msvcrt is sure to take, but for a gate

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte; False where another process holds it. Windows has no shared kind here: every lock is exclusive."""
        with _mutex:  # a file has one place that is read, written and locked
            os.lseek(fd, position, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        """Unlock a byte, if this process holds it."""
        with _mutex, suppress(PermissionError):
            os.lseek(fd, position, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

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
