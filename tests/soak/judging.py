"""Judge a soak by the lines that its processes left, and by the logs in the store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final

import msgspec

from durable_core import CorruptLog, Store, control

from .flows import PLACES, SENT, THREADS, crashes, crowd, expected, meddled, with_forks
from .side import Line
from .spoiling import SPOILT_RUNS

ENDED: Final = ("succeeded", "failed", "cancelled", "parked")
_AT_MOST_ONCE: Final = ("die",)
"""At-most-once steps without `recover`: they never happen twice."""
_NOTICED_WITHIN: Final = 0.5
"""Seconds within which a process notices that its lock is gone, on a busy machine."""


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

    def last(self, died: Mapping[str, float]) -> float:
        """Return until when it lasted, given when processes died."""
        return self.end if self.end is not None else died.get(self.who, self.begin)


class Verdict(msgspec.Struct):
    """The figures of the table, and the runs that broke a promise."""

    begun: int = 0
    ended: int = 0
    parked: int = 0
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    """How many lines there are of each `what`."""
    doubled_in_flight: int = 0
    waits: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """Seconds until a run continued, by what let it continue."""
    doubled: list[str] = msgspec.field(default_factory=list)
    """Runs with an effect that happened twice though it wasn't in flight at a kill."""
    never_ended: list[str] = msgspec.field(default_factory=list)
    wrong: dict[str, str] = msgspec.field(default_factory=dict)
    """What else is wrong, by run, or by process for one that ended by itself."""

    @property
    def longest(self) -> float:
        return max((max(times) for times in self.waits.values()), default=0)

    @property
    def broken(self) -> Sequence[str]:
        """The runs, and processes, that broke a promise."""
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


class Losses:
    """When a process may have lost the locks of its runs, so that another took them while it was inside a step.

    An outage of the server does that on every store. A lock of PostgreSQL goes with its connection, a lease while its holder is
    frozen or cut off; those of the operating system stay.
    """

    def __init__(self, lines: Sequence[Line], store: str) -> None:
        self._all = _intervals(lines, "server-killed", ("server-started",))
        if store == "postgres":
            self._all += _intervals(lines, "cut", ("cut-over",))
        self._of: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._frozen: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for who in {line.who for line in lines if line.what == "frozen"}:
            frozen = _intervals([line for line in lines if line.who == who], "frozen", ("thawed", "killed"))
            if store == "postgres":
                frozen = [each for each in frozen if _overlaps(self._all, *each)]
            if store in ("postgres", "redis", "s3"):
                self._frozen[who] = frozen
                self._of[who] += frozen
        for who in {line.who for line in lines if line.what == "cut-off"}:
            self._of[who] += _intervals([line for line in lines if line.who == who], "cut-off", ("back", "killed"))

    def within(self, who: str, begin: float, end: float) -> bool:
        """Return True if the process may have lost its locks in this time, or just before it."""
        return _overlaps([*self._all, *self._of[who]], begin - _NOTICED_WITHIN, end)

    def thawed_into(self, call: Execution, other: Execution, lines: Iterable[Line]) -> bool:
        """Return True if a call was about to begin when its process froze, and `other` began meanwhile. Nothing prevents that.

        It can be true of as many calls of a run as there are threads. None of them begins after another line of the run, except
        in a crowd, where each call has its own thread.
        """
        for frozen, thawed in self._frozen[call.who]:
            if frozen <= other.begin and thawed <= call.begin <= thawed + _NOTICED_WITHIN:
                between = (each for each in lines if each.who == call.who and thawed <= each.at < call.begin)
                did = Counter(each.what for each in between if each.run == call.run)
                return did["begin"] < THREADS and (did.keys() <= {"begin"} or call.run.startswith(crowd.name))
        return False


def _intervals(lines: Iterable[Line], begin: str, ends: Sequence[str]) -> list[tuple[float, float]]:
    found = list[tuple[float, float]]()
    since: float | None = None
    for line in lines:
        if line.what == begin:
            since = line.at
        elif line.what in ends and since is not None:
            found.append((since, line.at))
            since = None
    return found


def _overlaps(intervals: Iterable[tuple[float, float]], begin: float, end: float) -> bool:
    return any(a <= end and b >= begin for a, b in intervals)


def judge_effects(lines: Sequence[Line], losses: Losses, verdict: Verdict) -> None:
    """Find effects that happened twice, and whether each was in flight when its process was killed or lost its locks.

    It was if that happened after it began and before its process knew that it was recorded.
    """
    died = {line.who: line.at for line in lines if line.what == "killed"}
    calls = defaultdict[tuple[str, str], list[Execution]](list)
    for each in executions(lines):
        calls[each.run, each.step].append(each)
    for (run_id, step_id), times in calls.items():
        for before, after in pairwise(times):
            lost = losses.within(before.who, before.begin, after.begin if before.recorded is None else before.recorded)
            if after.attempt > before.attempt:
                if step_id == SENT and before.end is not None and before.end < after.begin and not lost:
                    verdict.wrong.setdefault(run_id, f"sent in {before.who}, and again in {after.who}")
                continue
            # The kill is noted just before it is made, so a last call may begin after the note.
            killed = before.recorded is None and before.who in died and died[before.who] <= after.begin
            lost = lost or (step_id != SENT and losses.thawed_into(after, before, lines))
            if step_id in _AT_MOST_ONCE or not (killed or lost):
                verdict.doubled.append(run_id)
                verdict.wrong.setdefault(run_id, f"step {step_id!r} happened twice, in {before.who} and {after.who}")
            else:
                verdict.doubled_in_flight += 1


def judge_threads(lines: Sequence[Line], verdict: Verdict) -> None:
    """Check that no more synchronous steps of a crowd are under way than there are threads.

    So no more than that begin in a process that has cancelled the run. And a process that died, or lost the run's lock and drives
    the run again, leaves no more intents of steps that had not begun.
    """
    cancelled, begun, entries = set[tuple[str, str]](), set[tuple[str, str]](), Counter[str]()
    late, unbegun = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for line in lines:
        here, call = (line.who, line.run), (line.run, line.step)
        if line.what == "enter":
            entries[line.run] += 1
        elif line.what == "cancelled":
            cancelled.add(here)
        elif line.what == "begin" and line.step.startswith("call-"):
            begun.add(call)
            late[here] += here in cancelled
        elif line.what == "unknown" and call in begun:
            begun.remove(call)  # it begins anew
        elif line.what == "unknown":
            unbegun[here] += 1
    for (who, run_id), count in late.items():
        if count > THREADS:
            verdict.wrong.setdefault(run_id, f"{count} steps began in {who} after it had cancelled the run")
    for (who, run_id), count in unbegun.items():
        if count > THREADS * (entries[run_id] - 1):
            verdict.wrong.setdefault(run_id, f"{who} found {count} steps whose beginning was recorded, and which had not begun")


def judge_hands(lines: Sequence[Line], losses: Losses, verdict: Verdict) -> None:
    """Check that nobody resolves or retries a step by hand while it runs."""
    died = {line.who: line.at for line in lines if line.what == "killed"}
    calls = [each for each in executions(lines) if each.run.startswith(meddled.name)]
    asked = dict[str, float]()
    for line in lines:
        if line.what == "meddles":
            asked[line.run] = line.at
        elif line.what == "meddled":
            for each in calls:
                runs = each.run == line.run and each.begin < asked[line.run] and each.last(died) > line.at
                if runs and not losses.within(each.who, each.begin, line.at):
                    verdict.wrong.setdefault(line.run, f"step {each.step!r} was mended by hand while it ran in {each.who}")


def judge_crashes(lines: Iterable[Line], verdict: Verdict) -> None:
    """Check that no flow crashed, except the one that always does."""
    for line in lines:
        if line.what == "crashed" and not line.run.startswith((crashes.name, SPOILT_RUNS)):
            verdict.wrong.setdefault(line.run, f"it crashed in {line.who}")


def judge_limit(lines: Sequence[Line], losses: Losses, verdict: Verdict) -> None:
    """Check that no more runs of `limited` had their effect at the same time than there are places, except with lost locks."""
    died = {line.who: line.at for line in lines if line.what == "killed"}
    drawn = []
    for each in executions(lines):
        if each.run.startswith("limited"):
            until = each.last(died)
            if not losses.within(each.who, each.begin, until):
                drawn.append((each.begin, until, each.run))
    for begin, _, run_id in drawn:
        at_once = sum(a <= begin < b for a, b, _ in drawn)
        if at_once > PLACES:
            verdict.wrong[run_id] = f"{at_once} runs of a limit of {PLACES} at once"


def judge_waits(lines: Sequence[Line], verdict: Verdict) -> None:
    """Measure how long runs took to continue.

    - asked: from the return of `start` until the flow's function is called.
    - decided, slept: from the return of the decision, or from the end of the sleep, until the wait returns in the flow.
    - killed: from the kill of the process that drove the run until the flow's function is called again.
    - killed again: the same for a later kill. A worker runs such a run only if it has nothing else to do, so that takes longer.
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
    """Check how each run stands that was asked for, its children and forks too."""
    standing = dict[str, control.RunStatus]()
    with suppress(CorruptLog):  # raised for the spoilt runs, after the others
        async for run in control.runs(store):
            if not run.run_id.startswith("$"):
                standing[run.run_id] = run
    wanted = with_forks(asked)
    verdict.begun = len(wanted | standing.keys())
    for run_id in sorted(wanted | standing.keys()):
        run = standing.get(run_id)
        if run is not None and run.status in ("crashed", "waiting") and run.flow == crashes.name:
            verdict.parked += 1  # or about to be: workers try it again, after pauses, and hand it back when they stop
            continue
        if run is None or run.status not in ENDED:
            verdict.never_ended.append(run_id)
            verdict.wrong.setdefault(run_id, "isn't there" if run is None else f"is {run.status}: {run.waiting_for}")
            continue
        verdict.parked += run.status == "parked"
        verdict.ended += run.status != "parked"
        if run_id in wanted and (run.status, run.result) not in expected(run_id):
            verdict.wrong.setdefault(run_id, f"{run.status} with {run.result!r} instead of {expected(run_id)}")
