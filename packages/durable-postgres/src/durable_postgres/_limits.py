"""How long the store waits."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds after which the store gives up, and seconds between two looks."""

    connect: float = 10.0
    turn: float = 60.0
    """For a free connection of the pool."""
    statement: float = 10.0
    read: float = 60.0
    """For a statement that may concern a long log."""
    commit: float = 60.0
    """For a commit, which also checks the constraints that were deferred."""
    close: float = 10.0
    ping: float = 5.0
    """Between two looks at the connection that holds the locks."""
