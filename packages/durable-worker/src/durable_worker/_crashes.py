"""Counting how often a run crashed, or died with its process, without getting on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

import msgspec

from durable_core.engine import FLOW, cancelled, children_of, entries_of, is_crash, is_parked, last_outcome
from durable_core.record import StepError, StepRecord
from durable_core.store import Store

_ALIKE: Final = 20
"""After so many crashes with one error at one line a run is parked, whatever it recorded between them."""


class Crashes(msgspec.Struct):
    """What went wrong since the last outcome of a step, while nobody helped."""

    raised: int = 0
    """How often the flow's own code raised."""
    died: int = 0
    """How often the process died that drove the run."""
    alike: int = 0
    """How often the last error was raised in a row at the same line, outcomes or not."""
    was_parked: bool = False
    """Whether it was parked for that before, and is tried once more."""

    def too_many(self, most: int) -> bool:
        """Tell whether the run should be parked."""
        return self.raised + self.died >= (1 if self.was_parked else most) or self.alike >= _ALIKE


def deaths(flows: Sequence[StepRecord], progress: datetime | None) -> int:
    """Count how often a run's process died since its last outcome, by the entries of its flow."""
    died = 0
    for record, before in pairwise([*reversed(flows), None]):
        assert record is not None
        if is_parked(record) or _is_by_hand(record) or (progress is not None and record.ended_at < progress):
            break
        died += record.status == "started" and before is not None and before.status == "started"
    return died + (bool(flows) and flows[-1].status == "started")


async def count(store: Store, entries: Sequence[StepRecord]) -> Crashes:
    """Count the crashes of a run whose lock is held: a run that was started, and not left in an orderly way, has died."""
    flows = entries_of(entries, FLOW)
    found = Crashes(alike=_alike(flows))
    if not found.alike and not deaths(flows, None):
        return found
    logs = [entries, *[await store.list(child) for child in children_of(entries)]]  # a child gets on with the run
    times = map(last_outcome, logs)
    progress = max((each for each in times if each is not None), default=None)
    found.died = deaths(flows, progress)
    for record in reversed(flows):
        found.was_parked = is_parked(record)
        if found.was_parked or _is_by_hand(record) or (progress is not None and record.ended_at < progress):
            break
        found.raised += is_crash(record)
    return found


def _alike(flows: Sequence[StepRecord]) -> int:
    """Count how often in a row the flow's code raised the same error at the same line."""
    lines = [_line(record.error) for record in reversed(flows) if is_crash(record)]
    return next((number for number, line in enumerate(lines) if line != lines[0]), len(lines))


def _is_by_hand(record: StepRecord) -> bool:
    """Tell whether somebody reopened the run: what was before counts no more. A cancellation is none of that."""
    return record.status == "reopened" and not is_crash(record) and cancelled(record) is None


def _line(error: StepError | None) -> tuple[str, str] | None:
    """Return what an error was and where it was raised."""
    if error is None:
        return None
    places = [line.strip() for line in (error.traceback or "").splitlines() if line.lstrip().startswith("File ")]
    return f"{error.type}: {error.message}", places[-1] if places else ""
