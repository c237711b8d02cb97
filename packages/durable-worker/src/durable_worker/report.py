"""The report of one round of a worker."""

from __future__ import annotations

import msgspec


class SweepReport(msgspec.Struct):
    """The number of runs in each state that a worker looked at in one round."""

    started: int = 0
    """Runs that schedules started."""
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    suspended: int = 0
    """Runs that continued and now wait for a time, an event or a person."""
    crashed: int = 0
    """Runs whose own code raised. They are tried again later."""
    parked: int = 0
    """Runs that need somebody to act."""
    busy: int = 0
    """Runs that another worker drives, or for which a limit left no place."""
    unknown: int = 0
    """Runs whose state is unknown, such as those with a damaged log."""
