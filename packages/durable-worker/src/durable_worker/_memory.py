"""Remembers troublesome runs until the worker's process ends."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from durable_core.clock import Clock
from durable_core.options import exponential

_next_try: Final = exponential(1, limit=60)


class Memory:
    """Remembers how long to skip runs, and since when they wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._damages: Final[dict[str, tuple[int, float]]] = {}
        """How often the log of a run was damaged, and until when the run is skipped."""
        self._early_looks: Final[dict[str, tuple[datetime, int]]] = {}
        """The time for which a run was woken too early, and how often."""
        self._waits: Final[dict[str, float]] = {}
        """The time since which a run waits here to be driven alone."""

    def is_left_alone(self, run_id: str) -> bool:
        """Return True if the run's log was recently damaged."""
        _, until = self._damages.get(run_id, (0, -float("inf")))
        return until > self._clock.monotonic()

    def leave_alone(self, run_id: str) -> None:
        """Skip a run with a damaged log, for 1, 2, 4 … 60 minutes."""
        times = self._damages.get(run_id, (0, 0.0))[0] + 1
        self._damages[run_id] = times, self._clock.monotonic() + 60 * _next_try(times)

    def later_each_time(self, run_id: str, until: datetime) -> timedelta:
        """Return how long to skip a run that was woken too early again for the same time: 1, 2, 4 … 60 s."""
        known, times = self._early_looks.get(run_id, (until, 0))
        times = times + 1 if known == until else 1
        self._early_looks[run_id] = until, times
        return timedelta(seconds=_next_try(times))

    def seconds_waiting(self, run_id: str) -> float:
        """Return how long a run has waited here to be driven alone, since the first call."""
        now = self._clock.monotonic()
        return now - self._waits.setdefault(run_id, now)

    def end_wait(self, run_id: str) -> None:
        self._waits.pop(run_id, None)

    def forget(self, run_id: str) -> None:
        """Forget a run that has ended."""
        for remembered in (self._damages, self._early_looks, self._waits):
            remembered.pop(run_id, None)
