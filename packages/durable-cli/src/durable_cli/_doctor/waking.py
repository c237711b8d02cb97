"""Checks that wake-ups come once, in time, and again if they were not cleared. Compares the store's clock with this one."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Final

from durable_cli._text import span
from durable_core.store import SupportsWakeups, WakeUp, wakeups_of

from .finding import Note, Safe, Unsafe, check

if TYPE_CHECKING:
    from .scratch import Scratch

_MANY: Final = 40
_LONG: Final = 60.0  # seconds that a wake-up is hidden
_SHORT: Final = 0.5
_PATIENCE: Final = 6.0  # seconds
_AGAIN: Final = 0.05  # seconds
_OFF: Final = 10.0  # seconds that two clocks may differ


@check(
    "wakeups",
    "Wake-ups",
    promise="no wake-up of a worker is lost",
    danger="a run could wait forever, or be taken by two workers at once",
)
async def once(scratch: Scratch) -> Safe:
    wakeups, flow = _wakeups(scratch), f"{scratch.flow}-once"
    run_id = scratch.run_id("wakeups")
    past = datetime.now(UTC) - timedelta(days=1)
    tokens = [each.token for each in await asyncio.gather(*(scratch.set_wakeup(run_id, flow, past) for _ in range(_MANY)))]
    taken = Counter(token for tokens in await scratch.all_ask("take", flow=flow, hidden=_LONG) for token in tokens)
    if lost := sum(token not in taken for token in tokens):
        raise Unsafe(f"{lost} of {_MANY} wake-ups that were set never came")
    if (twice := sum(count > 1 for count in taken.values())) and _hides(wakeups):
        raise Unsafe(f"{twice} of {_MANY} wake-ups came twice, though they were hidden for {_LONG:g} s")
    shown = "none came twice" if _hides(wakeups) else "this store shows them to every worker, whose locks decide"
    return Safe(f"{_MANY} were taken by {scratch.rivals} processes at once: none was lost, and {shown}")


@check("wakeups-again", "Wake-ups, in time", danger="a run could wait too long, or be looked at over and over")
async def again(scratch: Scratch) -> Safe:
    wakeups, flow = _wakeups(scratch), f"{scratch.flow}-again"
    run_id = scratch.run_id("wakeups-again")
    now = (await scratch.set_wakeup(run_id, f"{flow}-not", datetime.now(UTC))).now
    kept = await scratch.set_wakeup(run_id, flow, now - timedelta(seconds=1))
    cleared = await scratch.set_wakeup(run_id, flow, now - timedelta(seconds=1))
    early = await scratch.set_wakeup(run_id, flow, now + timedelta(seconds=1.5))
    shown: dict[str, list[WakeUp]] = {kept.token: [], cleared.token: [], early.token: []}
    begun = monotonic()
    while len(shown[kept.token]) < 2 or not shown[early.token]:
        if monotonic() - begun > _PATIENCE and len(shown[kept.token]) == 1:
            raise Unsafe(f"a wake-up that was taken and not cleared did not come again within {span(_PATIENCE)}")
        if monotonic() - begun > _PATIENCE:
            raise Unsafe(f"a wake-up that was due did not come within {span(_PATIENCE)}")
        for wakeup in await wakeups.take_wakeups([flow], limit=9, visibility_timeout=timedelta(seconds=_SHORT)):
            shown.setdefault(wakeup.token, []).append(wakeup)
        if shown[cleared.token]:
            await wakeups.clear_wakeups([cleared])
        await asyncio.sleep(_AGAIN)
    if len(shown[cleared.token]) > 1:
        raise Unsafe("a wake-up that was cleared came again")
    first, second = shown[kept.token][:2]
    if _hides(wakeups) and second.now - first.now < timedelta(seconds=_SHORT):
        raise Unsafe(f"a wake-up that was hidden for {span(_SHORT)} came again after {span(second.now - first.now)}")
    if shown[early.token][0].now < early.at:
        raise Unsafe(f"a wake-up came {span(early.at - shown[early.token][0].now)} before it was due")
    return Safe("none came too early; those that were taken and not cleared came again, those that were cleared did not")


@check("clock", "Clock", danger="sleeps and deadlines of runs would end at a wrong time")
async def clock(scratch: Scratch) -> Safe:
    if wakeups_of(scratch.store) is None:
        raise Note("this store has no clock of its own to compare")
    trips: list[tuple[float, float]] = []
    """For each request, how long it took and how far ahead the store's clock was."""
    is_whole = True
    for _ in range(5):
        sent = datetime.now(UTC)
        wakeup = await scratch.set_wakeup(scratch.run_id("clock"), f"{scratch.flow}-clock", sent + timedelta(days=1))
        trip = datetime.now(UTC) - sent
        trips.append((trip.total_seconds(), (wakeup.now - sent - trip / 2).total_seconds()))
        is_whole = is_whole and wakeup.now.microsecond == 0
    took, ahead = min(trips)
    # A clock of whole seconds, as on S3, may be off by one more.
    within = took / 2 + is_whole
    side = "ahead of" if ahead > 0 else "behind"
    says = f"the store's clock is {span(abs(ahead))} {side} this machine's, to within {span(within)}"
    if abs(ahead) > _OFF:
        raise Unsafe(says)
    return Safe(says, {"ahead": ahead, "within": within})


def _wakeups(scratch: Scratch) -> SupportsWakeups:
    wakeups = wakeups_of(scratch.store)
    if wakeups is None:
        raise Note("this store has no wake-ups: a worker looks at all its logs every two seconds")
    return wakeups


def _hides(wakeups: SupportsWakeups) -> bool:
    return getattr(wakeups, "hides_wakeups", True)
