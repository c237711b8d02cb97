"""Locks on single bytes of an open file: never waited for, and gone with the process."""

from __future__ import annotations

import os
import sys

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
