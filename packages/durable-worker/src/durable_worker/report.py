"""What one round of a worker did."""

from __future__ import annotations

import msgspec


class SweepReport(msgspec.Struct):
    """How the runs stand that a worker looked at in one round, by number."""

    started: int = 0
    """Runs that schedules asked for."""
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    suspended: int = 0
    """Runs that went on and wait now, for a time, an event or a person."""
    crashed: int = 0
    """Runs whose own code raised; they are tried again later."""
    parked: int = 0
    """Runs that somebody has to act on."""
    busy: int = 0
    """Runs that another worker drives, or for which there was no place."""
    unknown: int = 0
    """Runs about which nothing could be said, such as those with a damaged log."""
