"""Counting how often a run crashed, or its process died, without progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

import msgspec

from durable_core.engine import FLOW, cancelled, children_of, decided, entries_of, heads_of, is_crash, is_parked
from durable_core.record import StepError, StepRecord
from durable_core.store import Store

_MOST_REPEATS: Final = 20
"""After so many crashes with the same error at the same line, a run is parked, even if it recorded outcomes between them."""


class Crashes(msgspec.Struct):
    """The crashes of a run since the last outcome of a step or the last repair by hand."""

    errors: int = 0
    """The number of times that the flow's own code raised."""
    deaths: int = 0
    """The number of times that the driving process died."""
    repeats: int = 0
    """How many times in a row the last error was raised at the same line, with outcomes between or not."""
    was_parked: bool = False
    """True if the run was parked for crashes before, and gets one more attempt."""
    is_reopened: bool = False
    """True if nobody has driven the run since somebody reopened or cancelled it: its code may take another way now."""
    last: StepError | None = None
    """The last error of the flow's own code."""

    def too_many(self, most: int) -> bool:
        """Return True if the run should be parked."""
        if self.is_reopened:
            return False
        return self.errors + self.deaths >= (1 if self.was_parked else most) or self.repeats >= _MOST_REPEATS

    def why(self) -> str:
        """Return the reason for parking the run, in words."""
        if self.repeats >= _MOST_REPEATS:
            return f"it crashed {self.repeats} times in a row at the same line: {self.last}"
        crashed = f"it crashed {_times(self.errors)}" if self.errors else ""
        died = f"its process died {_times(self.deaths)}" if self.deaths else ""
        error = f"; the last error was {self.last}" if self.errors else ""
        return f"{' and '.join(filter(None, (crashed, died)))} without progress{error}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


async def count(store: Store, entries: Sequence[StepRecord]) -> Crashes:
    """Count the crashes of a run that nobody drives. If it was started and has no orderly end, its process has died."""
    flows = entries_of(entries, FLOW)
    since = [*_since_help(flows)]
    before = flows[-len(since) - 1] if len(since) < len(flows) else None
    last = next((record.error for record in since if is_crash(record)), None)
    is_reopened = bool(flows) and flows[-1].status == "reopened" and not is_crash(flows[-1])
    was_parked = before is not None and is_parked(before)
    found = Crashes(repeats=_repeats(since), was_parked=was_parked, is_reopened=is_reopened, last=last)
    if not found.repeats and not _deaths(since, before):
        return found
    first = _after_outcome(entries)
    while since and since[-1].revision < first:
        before = since.pop()
    # A child's progress counts too. Its log has another order, so only times can be compared.
    times = [_last_outcome(await store.list(child)) for child in children_of(entries)]
    progress = max((each for each in times if each is not None), default=None)
    while since and progress is not None and since[-1].ended_at <= progress:
        before = since.pop()
    found.errors = sum(map(is_crash, since))
    found.deaths = _deaths(since, before)
    return found


def _since_help(flows: Sequence[StepRecord]) -> Iterator[StepRecord]:
    """Yield the newest entries of a flow, back to where somebody reopened it by hand or it was parked."""
    for record, before in pairwise([*reversed(flows), None]):
        assert record is not None
        is_cancellation = cancelled(record) is not None and (before is None or cancelled(before) is None)
        is_by_hand = record.status == "reopened" and not is_crash(record) and not is_cancellation
        if is_parked(record) or is_by_hand:
            return
        yield record


def _deaths(flows: Sequence[StepRecord], before: StepRecord | None) -> int:
    """Count how often a driving process died, from the flow's entries, newest first, and the entry before them."""
    lives = [*flows, *([] if before is None else [before])]
    died = sum(record.status == "started" == earlier.status for record, earlier in pairwise(lives))
    return died + (bool(lives) and lives[0].status == "started")


def _after_outcome(entries: Sequence[StepRecord]) -> int:
    """Return the revision of the flow's first entry after the last outcome of a step. Decisions from outside don't count."""
    first = 0
    for index, head in reversed([*enumerate(heads_of(entries))]):
        if head.step_id == FLOW:
            first = head.revision
        elif head.status in ("success", "failure") and entries[index].kind not in ("event", "approval"):
            return first or entries_of(entries, FLOW)[-1].revision + 1
    return 0


def _last_outcome(entries: Sequence[StepRecord]) -> datetime | None:
    """Return the time of the last outcome of a step; None if there is none."""
    ended = (record.ended_at for record in reversed(entries) if record.step_id != FLOW and decided(record))
    return next(ended, None)


def _repeats(flows: Sequence[StepRecord]) -> int:
    """Count how many times in a row the flow's code raised the same error at the same line, from its entries, newest first."""
    lines = [_line(record.error) for record in flows if is_crash(record)]
    return next((number for number, line in enumerate(lines) if line != lines[0]), len(lines))


def _line(error: StepError | None) -> tuple[str, str] | None:
    """Return an error and the line at which it was raised."""
    if error is None:
        return None
    places = [line.strip() for line in (error.traceback or "").splitlines() if line.lstrip().startswith("File ")]
    return f"{error.type}: {error.message}", places[-1] if places else ""
