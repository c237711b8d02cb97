"""When a run looks for its cancellation, which another process may ask for."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from durable_core._log import news
from durable_core._log.chain import successor
from durable_core._log.standing import lasting
from durable_core.clock import Clock
from durable_core.errors import RunCancelled
from durable_core.record import StepError, StepRecord
from durable_core.store import Store, polling_of

_SECONDS: Final = 2.0


def poll_seconds(store: Store) -> float:
    """Return how often a run should look into its store for what others did."""
    polling = polling_of(store)
    return _SECONDS if polling is None else polling.poll_seconds


class CancellationPoll:
    """Tells when a look is due: every few seconds, and at once when somebody in this process acted on the run."""

    def __init__(self, store: Store, run_id: str, clock: Clock) -> None:
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._seconds: Final = poll_seconds(store)
        self._next = 0.0
        self._news = 0

    def due(self) -> bool:
        """Tell whether the run should look before it begins anything."""
        return self._clock.monotonic() >= self._next or self._news != news.count(self._run_id)

    def begin(self) -> int:
        """Note that a look begins, so that others need not look as well; return the news that it will have seen."""
        self._next = self._clock.monotonic() + self._seconds
        return news.count(self._run_id)

    def end(self, seen: int) -> None:
        """Note that a look was answered. One that was begun earlier may be answered later."""
        self._news = max(self._news, seen)


def asking_to_cancel(flow: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord:
    """Return the entry of `$flow` that asks for the run's cancellation."""
    asked = {"reason": reason, "by": by, "at": now.isoformat()}
    note = {**lasting(flow), "cancelled": asked}
    return successor(flow, now, status="reopened", note=note, error=None, result=None, until=None)


def ended_before_it_began(flow: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord:
    """Return the entry that ends a cancelled run which was only asked for."""
    asked = asking_to_cancel(flow, now, reason, by)
    error = StepError.from_exception(RunCancelled(asked))
    return successor(flow, now, status="failure", note=asked.note, error=error, until=None)
