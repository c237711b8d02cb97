"""Locks of the operating system. Each lock is one byte of a lock file; a hash of its name chooses the byte."""

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
"""How many files hold the locks of runs. Locking gets slower with every lock that is held in the same file."""
_READ: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_WRITE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LONGEST_PAUSE: Final = 0.005
# A system call lets another thread run. One before each step would double the cost of steps.
_LOOK_AGAIN: Final = 0.05
# A note says who took a lock. Notes come before the locks in the file. Two locks rarely share one; then one holder is unknown.
_NOTES: Final = 256
_NOTE_SIZE: Final = 256
_LOCKS_FROM: Final = _NOTES * _NOTE_SIZE

Spot = tuple[str, int]
"""The place of a lock: the name of a lock file and a position in it."""


def spot_of(kind: str, *names: str, files: int = 1) -> Spot:
    """Return the spot of the lock with these names. Locks of one kind are spread over `files` files."""
    digest = int.from_bytes(blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest())
    return f"{kind}-{digest % files:02}", _LOCKS_FROM + digest // files % (LAST - _LOCKS_FROM)


def gate_of(spot: Spot) -> Spot:
    """Return the spot of the gate, a second lock that is held while waiting for the one at `spot`."""
    return spot[0], spot[1] + 1


class Locks:
    """The locks of one folder. Several threads may use it; within one process every lock is exclusive.

    Lock files are made when needed, in a folder of their own, and never removed. `make_folder` makes the parent of that folder.
    A process must always name a folder by the same path: on macOS, two paths would give it the same lock twice.
    """

    def __init__(self, folder: Path, *, make_folder: Callable[[Path], None], wait_limit: float = 30.0) -> None:
        self._folder: Final = folder / LOCK_FOLDER
        self._make_folder: Final = make_folder
        self._wait_limit: Final = wait_limit

    def take(self, spot: Spot, *, shared: bool = False, note: bool = False) -> Lock | None:
        """Take a lock, or return None if another holds it. `note` writes down who took it.

        A read-only lock file is enough for a shared lock.
        """
        _notice_fork()
        name, position = spot
        while True:
            with _mutex:  # released before the system call, so that threads with other locks don't wait
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
            except BaseException:  # after a full disk, nobody would ever give the lock back
                lock.release()
                raise
            lock.release()
            if is_there:
                return None
            with _mutex:  # the file was removed, and perhaps made again
                file.close()

    def wait(self, spot: Spot, *, shared: bool) -> Lock | None:
        """Wait for a lock that nobody holds for long, and take it. Raises `StoreError` after `wait_limit` seconds.

        Returns None for a shared lock if there is no readable lock file and none can be made.
        """
        deadline = time.monotonic() + self._wait_limit
        try:
            # A waiting writer holds the gate, and new readers must pass it. Else overlapping readers would keep the writer out.
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
        """Return who holds a lock, as far as is known, or None if nobody does. Takes no lock and makes no file."""
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
        """Close the lock files in which no lock is held. They are opened again when needed."""
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
        """Return the open lock file of that name. Its path may name another file by now."""
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
    """A lock that was taken. `since` is the time in its note, None without a note."""

    __slots__ = ("_file", "_position", "since")

    def __init__(self, file: _LockFile, position: int, since: datetime | None) -> None:
        self._file: Final = file
        self._position: Final = position
        self.since: Final = since

    def loss(self) -> str:
        """Say why this process no longer holds the lock; empty while it does. Looks at the lock file at most every 50 ms."""
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
    """The operating system's lock on a run. It ends with the process."""

    def __init__(self, run_id: str, locks: Locks, spot: Spot) -> None:
        self._run_id: Final = run_id
        self._locks: Final = locks
        self._spot: Final = spot
        self._lock: Lock | None = None

    def take(self) -> bool:
        """Take the lock. Returns False if another holds it."""
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
    """A lock file, open once per process. The system's locks don't keep threads apart, so `locks` does."""

    def __init__(self, path: str, flags: int) -> None:
        self.path: Final = path
        self.is_writable: Final = flags == _WRITE
        self.fd: int = os.open(path, flags, 0o600)
        self._status: Final = os.fstat(self.fd)
        self.locks: Final[dict[int, Lock]] = {}
        """The locks that this process holds or is about to take, by position."""
        self.sure_until: float = 0.0
        """Until then, in monotonic time, holders need not look whether the file is still at its path."""
        _files[path] = self

    def is_there(self) -> bool:
        """Return True if the path still names this file."""
        try:
            return os.path.samestat(os.stat(self.path), self._status)  # noqa: PTH116  # half the time of a Path's
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Have the next user open the file again. Close it now unless a lock is held in it."""
        if _files.get(self.path) is self:
            del _files[self.path]
        if not self.locks and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


# Guards `_files`. Look it up at each use: a forked child has a new one.
_mutex = threading.RLock()
_files: Final[dict[str, _LockFile]] = {}
_process = os.getpid()


def _notice_fork() -> None:
    """Forget the parent's locks in a child that some server forked without Python's knowledge."""
    if os.getpid() != _process:
        _forget_all()


def _forget_all() -> None:
    """Drop all locks in a forked child. They belong to the parent, and must end with it."""
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

    LAST = 2**31 - 2  # msvcrt is sure to take positions below 2**31, and a gate needs one more

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte. Returns False if another process holds it. Every lock is exclusive: msvcrt has no shared ones."""
        with _mutex:  # locking uses the position of the file, as reading and writing do
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
    # Linux has locks that belong to the open file. The older ones, all that macOS offers, belong to the process, which loses its
    # locks on a file when it closes any descriptor of that file. So a process opens each lock file only once.
    HAS_OPEN_FILE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")

    def lock_byte(fd: int, position: int, *, shared: bool) -> bool:
        """Lock a byte. Returns False if another process holds it."""
        try:
            if HAS_OPEN_FILE_LOCKS:
                _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, position)
            else:
                fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, position)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def unlock_byte(fd: int, position: int) -> None:
        """Unlock a byte, if this process holds it."""
        if HAS_OPEN_FILE_LOCKS:
            _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, position)
        else:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, position)

    def _ask(fd: int, command: int, kind: int, position: int) -> int:
        """Call fcntl with a struct flock, and return the kind of lock in its answer."""
        answer: int = unpack_from("h", fcntl.fcntl(fd, command, pack("hhqqi0q", kind, os.SEEK_SET, position, 1, 0)))[0]
        return answer


def is_locked(fd: int, position: int) -> bool:
    """Return True if another process holds the byte."""
    if sys.platform != "win32" and HAS_OPEN_FILE_LOCKS:
        return _ask(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, position) != fcntl.F_UNLCK
    if not lock_byte(fd, position, shared=True):  # other systems can only try to lock it
        return True
    unlock_byte(fd, position)
    return False
