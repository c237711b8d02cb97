"""What a soak has shown, from the lines that its processes left and the logs in the store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from durable_core import Store, control

from .flows import PLACES, crashes, expected, mend_of
from .side import Line

ENDED: Final = ("succeeded", "failed", "cancelled", "parked")
_AT_MOST_ONCE: Final = ("die",)
"""Steps that nothing can be found out about: they never happen twice."""


class Execution(msgspec.Struct):
    """One time that a step's function was called."""

    begin: float
    who: str
    run: str
    step: str
    attempt: int
    recorded: float | None = None
    """When its process knew that the outcome was recorded."""
    end: float | None = None


class Verdict(msgspec.Struct):
    """The figures of the table, and which runs broke a promise."""

    begun: int = 0
    ended: int = 0
    parked: int = 0
    kills: int = 0
    outages: int = 0
    doubled_in_flight: int = 0
    waits: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """Seconds from what let a run go on to its going on, by what that was."""
    doubled: list[str] = msgspec.field(default_factory=list)
    """Runs with an effect that happened twice though it wasn't in flight at a kill."""
    never_ended: list[str] = msgspec.field(default_factory=list)
    wrong: dict[str, str] = msgspec.field(default_factory=dict)
    """Runs that ended otherwise than they have to, or broke a limit, and how."""

    @property
    def longest(self) -> float:
        return max((max(times) for times in self.waits.values()), default=0)

    @property
    def broken(self) -> Sequence[str]:
        """The runs that broke a promise."""
        return [*dict.fromkeys([*self.doubled, *self.never_ended, *self.wrong])]


def executions(lines: Iterable[Line]) -> list[Execution]:
    """Pair the lines of each call of a step's function."""
    found: list[Execution] = []
    newest: dict[tuple[str, str, str], Execution] = {}
    for line in lines:
        key = line.who, line.run, line.step
        if line.what == "begin":
            newest[key] = Execution(line.at, line.who, line.run, line.step, line.attempt)
            found.append(newest[key])
        elif key in newest and line.what == "end":
            newest[key].end = line.at
        elif key in newest and line.what == "recorded":
            newest[key].recorded = line.at
    return found


def outages_in(lines: Iterable[Line]) -> list[tuple[float, float]]:
    """Return from when to when the server was away."""
    times = [line.at for line in lines if line.what in ("server-killed", "server-started")]
    return [(times[index], times[index + 1]) for index in range(0, len(times) - 1, 2)]


def judge_effects(lines: Sequence[Line], verdict: Verdict) -> None:
    """Find effects that happened twice, and whether each was in flight at a kill of its process or of the server.

    It was if its process died, or the server was away, after it began and before its process knew that it was recorded.
    """
    died = {line.who: line.at for line in lines if line.what == "killed"}
    away = outages_in(lines)
    calls = defaultdict[tuple[str, str], list[Execution]](list)
    for each in executions(lines):
        calls[each.run, each.step].append(each)
    for (run_id, step_id), times in calls.items():
        for before, after in pairwise(times):
            if after.attempt > before.attempt:
                continue
            known = before.recorded
            killed = before.who in died and known is None and before.begin <= died[before.who] <= after.begin
            until = after.begin if known is None else known
            if step_id in _AT_MOST_ONCE or not (killed or any(a <= until and b >= before.begin for a, b in away)):
                verdict.doubled.append(run_id)
                verdict.wrong.setdefault(run_id, f"step {step_id!r} happened twice, in {before.who} and {after.who}")
            else:
                verdict.doubled_in_flight += 1


def judge_limit(lines: Sequence[Line], verdict: Verdict) -> None:
    """See that no more runs of `limited` had their effect at the same time than there are places, but for outages."""
    died = {line.who: line.at for line in lines if line.what == "killed"}
    away = outages_in(lines)
    drawn = []
    for each in executions(lines):
        if each.run.startswith("limited"):
            until = each.end if each.end is not None else died.get(each.who, each.begin)
            if not any(a <= until and b >= each.begin for a, b in away):
                drawn.append((each.begin, until, each.run))
    for begin, _, run_id in drawn:
        at_once = sum(a <= begin < b for a, b, _ in drawn)
        if at_once > PLACES:
            verdict.wrong[run_id] = f"{at_once} runs of a limit of {PLACES} at once"


def judge_waits(lines: Sequence[Line], verdict: Verdict) -> None:
    """Measure from what let a run go on to its going on.

    That is from the return of `start` to its function being called, from the return of what somebody decided, or the time that
    it slept until, to the wait's return in its function, and from the kill of the process that drove it to its function being
    called again; a run that was killed before is driven alone, and has to wait for that.
    """
    waits = defaultdict[str, list[float]](list)
    entered = defaultdict[str, list[float]](list)
    on = defaultdict[tuple[str, str], list[float]](list)
    for line in lines:
        if line.what == "enter":
            entered[line.run].append(line.at)
        elif line.what == "on":
            on[line.run, line.step].append(line.at)

    def measure(what: str, since: float, times: Sequence[float]) -> None:
        if (at := next((at for at in times if at >= since), None)) is not None:
            waits[what].append(at - since)

    seen = set[tuple[str, str, str]]()
    driven: dict[str, dict[str, float]] = defaultdict(dict)
    deaths = Counter[str]()
    for line in lines:
        key = line.what, line.run, line.step
        if line.what == "enter":
            driven[line.who][line.run] = line.at
        elif line.what in ("ended", "suspended", "crashed", "parked"):
            driven[line.who].pop(line.run, None)
        elif line.what == "killed":
            for run_id in driven.pop(line.who, ()):
                deaths[run_id] += 1
                measure("killed" if deaths[run_id] == 1 else "killed again", line.at, entered[run_id])
        elif key in seen:
            continue
        elif line.what == "asked":
            # It may have begun before `start` has returned.
            if entered[line.run] and entered[line.run][0] >= line.at:
                measure("asked", line.at, entered[line.run])
        elif line.what == "decided" and on[line.run, line.step]:
            if on[line.run, line.step][0] >= line.at:
                measure("decided", line.at, on[line.run, line.step])
        elif line.what == "wants" and line.kind == "sleep":
            measure("slept", line.until, on[line.run, line.step])
        seen.add(key)
    verdict.waits = dict(waits)


async def judge_runs(store: Store, asked: Iterable[str], verdict: Verdict) -> None:
    """See how each run stands that was asked for, children and forks too."""
    standing = {run.run_id: run async for run in control.runs(store) if not run.run_id.startswith("$")}
    asked = [*asked]
    wanted = {*asked, *(f"{each}-fork" for each in asked if each.startswith("fails") and mend_of(each) == "fork")}
    verdict.begun = len(wanted | standing.keys())
    for run_id in sorted(wanted | standing.keys()):
        run = standing.get(run_id)
        if run is not None and run.status == "crashed" and run.flow == crashes.name:
            verdict.parked += 1  # or about to be: each worker that begins later tries it once more, after a pause
            continue
        if run is None or run.status not in ENDED:
            verdict.never_ended.append(run_id)
            verdict.wrong.setdefault(run_id, "isn't there" if run is None else f"is {run.status}: {run.waiting_for}")
            continue
        verdict.parked += run.status == "parked"
        verdict.ended += run.status != "parked"
        if run_id in wanted and (run.status, run.result) != expected(run_id):
            verdict.wrong.setdefault(run_id, f"{run.status} with {run.result!r} instead of {expected(run_id)}")
