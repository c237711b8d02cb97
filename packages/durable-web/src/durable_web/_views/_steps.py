"""The steps of a run, page by page, and the bars that show what each did when."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from durable_core.engine import child_of, decided, heads_of
from durable_core.errors import CorruptLog, Withdrawn
from durable_core.record import StepRecord
from durable_web._asked import asked_by

PAGE: Final = 100
_MOST_ENTRIES: Final = 40
"""How many entries of a step are drawn. Takes the last ones, because progress may have thousands."""
_THINNEST: Final = 0.8  # percent of the whole bar


class Span(NamedTuple):
    """A part of a bar, in percent of its width."""

    tone: str
    """`ok`, `bad`, `work`, `wait` or `idle`."""
    left: float
    width: float


class Step(NamedTuple):
    """A step of a run, with its first entry and its last ones."""

    first: StepRecord
    entries: Sequence[StepRecord]
    is_at_work: bool
    """True if a process holds the run."""

    @property
    def newest(self) -> StepRecord:
        return self.entries[-1]

    @property
    def child(self) -> str | None:
        """The child run that the step started."""
        return child_of(self.newest)

    @property
    def is_over(self) -> bool:
        """True if the step has ended, so that its entries say everything."""
        return decided(self.newest) or self.newest.kind == "published"

    @property
    def state(self) -> str:
        """The step's state, in a word."""
        return state_of(self.newest, is_at_work=self.is_at_work)

    @property
    def acts(self) -> list[tuple[str, str, str]]:
        """Who acted on the step, how, and why."""
        return [act for entry in self.entries for act in acts_of(entry)[-1:]]

    def end(self, now: datetime) -> datetime:
        """Return when the step ended, or `now` if it hasn't."""
        return self.newest.ended_at if self.is_over else max(now, self.newest.ended_at)

    def spans(self, begin: datetime, end: datetime, now: datetime) -> list[Span]:
        """Return the parts of the step's bar between two times: attempts, waits, and the time between them."""
        whole = max((end - begin) / timedelta(microseconds=1), 1)
        drawn: list[Span] = []

        def draw(tone: str, since: datetime, until: datetime) -> None:
            left = (since - begin) / timedelta(microseconds=1) / whole * 100
            width = max((until - since) / timedelta(microseconds=1) / whole * 100, 0)
            if width > 0 or tone in ("ok", "bad"):
                drawn.append(Span(tone, round(min(left, 100 - _THINNEST), 3), round(max(width, _THINNEST), 3)))

        moment = self.entries[0].started_at
        before: StepRecord | None = None
        for entry in self.entries:
            since = entry.started_at if before is None else max(entry.started_at, moment)
            if before is not None and since > moment and entry.kind != "published":
                draw(_tone_between(before, is_at_work=True), moment, since)
            draw(_tone_of(entry, before), since, max(entry.ended_at, since))
            moment, before = max(entry.ended_at, since), entry
        if not self.is_over:
            draw(_tone_between(self.newest, is_at_work=self.is_at_work), moment, max(now, moment))
        return drawn


class Steps(NamedTuple):
    """A page of a run's steps, in the order in which they began."""

    page: Sequence[Step]
    number: int
    pages: int
    counts: Mapping[str, int]
    """The number of steps by the status of their newest entry."""

    def axis(self, now: datetime) -> tuple[datetime, datetime]:
        """Return the beginning and end of the bars on this page."""
        begin = min(step.first.started_at for step in self.page)
        return begin, max(max(step.end(now) for step in self.page), begin + timedelta(milliseconds=1))


def steps_of(entries: Sequence[StepRecord], *, statuses: Collection[str], page: int | None, is_at_work: bool) -> Steps:
    """Return a page of the steps with one of these statuses, or of all steps. Without a number, the last page."""
    newest: dict[str, tuple[int, str]] = {}
    for head in heads_of(entries):
        step_id, known = head.step_id, newest.get(head.step_id)
        if (known is None or known[0] < head.revision) and not step_id.startswith("$"):
            newest[step_id] = head.revision, head.status
    counts = Counter(status for _, status in newest.values())
    names = [step_id for step_id, (_, status) in newest.items() if not statuses or status in statuses]
    pages = max(1, -(-len(names) // PAGE))
    number = pages if page is None else min(page, pages)
    chosen = names[(number - 1) * PAGE : number * PAGE]
    first: dict[str, StepRecord] = {}
    last: dict[str, deque[StepRecord]] = {step_id: deque(maxlen=_MOST_ENTRIES) for step_id in chosen}
    for index, head in enumerate(heads_of(entries)):
        if head.step_id in last:
            first.setdefault(head.step_id, entries[index])
            last[head.step_id].append(entries[index])
    shown = [Step(first[name], sorted(last[name], key=lambda entry: entry.revision), is_at_work) for name in chosen]
    return Steps(shown, number, pages, counts)


def state_of(newest: StepRecord, *, is_at_work: bool) -> str:
    """Return a step's state, in a word."""
    if newest.kind == "published":
        return "published"
    if newest.kind == "approval" and newest.status == "success":
        decision = newest.value()
        return "approved" if isinstance(decision, dict) and decision.get("approved") else "rejected"
    if newest.status == "failure" and newest.error is not None and newest.error.matches(Withdrawn):
        return "withdrawn"
    if newest.status == "waiting" and newest.kind == "step" and newest.error is not None:
        return "retries"
    if newest.status == "started" and not is_at_work:
        return "interrupted"
    words = {"success": "succeeded", "failure": "failed", "waiting": "waiting", "started": "running", "reopened": "reopened"}
    return words[newest.status]


def acts_of(entry: StepRecord) -> list[tuple[str, str, str]]:
    """Return the people who made an entry: their names, what they did, and why. Empty if the run made it."""
    if entry.kind == "approval" and entry.status in ("waiting", "success"):
        try:
            votes = asked_by(entry).votes
        except CorruptLog:
            return []
        return [(vote.by, "approved" if vote.approved else "rejected", vote.reason or "") for vote in votes]
    by, reason = (said if isinstance(said := entry.notes.get(name), str) else "" for name in ("by", "reason"))
    if not by and not reason:
        return []
    did = {"reopened": "retried", "success": "sent" if entry.kind == "event" else "resolved", "waiting": "retried"}
    return [(by or "somebody", did.get(entry.status, "acted"), reason)]


def _tone_of(entry: StepRecord, before: StepRecord | None) -> str:
    """Return the colour of an entry's own time."""
    if entry.status == "reopened":
        return "idle"
    if entry.kind in ("sleep", "approval", "event") and before is not None:
        return "wait"
    if entry.status == "failure" or (entry.status == "waiting" and entry.kind == "step"):
        return "bad" if entry.error is not None else "wait"
    return "ok" if entry.status == "success" else "work"


def _tone_between(before: StepRecord, *, is_at_work: bool) -> str:
    """Return the colour of the time between an entry and the next one."""
    if before.status == "waiting":
        return "work" if before.kind == "flow" else "wait"
    return "work" if before.status == "started" and is_at_work else "idle"


def note_of(entry: StepRecord) -> dict[str, Any]:
    """Return an entry's note without who acted and why. Empty for an approval."""
    if entry.kind == "approval":
        return {}
    return {name: value for name, value in entry.notes.items() if name not in ("by", "reason")}
