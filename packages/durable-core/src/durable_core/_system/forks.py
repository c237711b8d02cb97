"""Noticing that this process was forked, also by a server that doesn't tell Python, and mostly without a system call."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Final

_WIPE_ON_FORK: Final = 18  # of madvise() on Linux, to which Python gives no name


class _Pid:
    """Where no page is wiped by a fork: an item that only the process that set it finds true."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, index: int) -> bool:
        return self._pid == os.getpid()

    def __setitem__(self, index: int, value: bool) -> None:
        self._pid = os.getpid() if value else 0


def _page() -> Any:
    if sys.platform == "linux":
        import mmap

        with suppress(OSError):  # before Linux 4.14
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
            try:
                page.madvise(-1)
            except OSError:
                return page  # other than some emulators, it knows what it was told
    return _Pid()


_mark: Final = _page()
_mark[0] = True
_forks = 0


def forks() -> int:
    """Return a number that is another in a forked child than in its parent: how many forks were noticed on the way here.

    What must not be shared with a child, such as a thread, a lock or a connection, is made anew when it changes.
    """
    global _forks
    if not _mark[0]:
        _forks += 1
        _mark[0] = True
    return _forks
