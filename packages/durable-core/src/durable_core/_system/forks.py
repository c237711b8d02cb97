"""Noticing that this process was forked, also by a server that doesn't tell Python."""

from __future__ import annotations

import os


def forks() -> int:
    """Return a number that differs between a forked child and its parent: the process id.

    What must not be shared with a child, such as a thread, a lock or a connection, is made anew when the number changes.
    """
    return os.getpid()
