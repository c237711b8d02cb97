"""The steps of a run from its log, decoded one by one on access."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from durable_core import NotFound, StepRecord
from durable_core.control import RunStatus
from durable_core.engine import child_of, decided, entries_of, heads_of
from durable_core.errors import Withdrawn

from ._output import record_json
from ._text import brief, cut, harmless, soon
from ._words import error_text

_ENDS: Final = 20
"""How many steps of a long run are shown at its beginning, among the notable ones, and at its end."""


class Step(NamedTuple):
    """A step, by its first and its newest entry."""

    first: StepRecord
    latest: StepRecord
    entries: int

    @property
    def step_id(self) -> str:
        return self.latest.step_id

    def state(self, run: RunStatus) -> str:
        """Return its state, in a word."""
        latest = self.latest
        if latest.status == "success" and latest.kind == "approval":
            return "approved" if _decision(latest).get("approved") else "rejected"
        if latest.kind == "published":
            return "published"
        if latest.status == "failure" and latest.error is not None and latest.error.matches(Withdrawn):
            return "withdrawn"
        if latest.status == "waiting" and latest.kind == "step":
            return "retries" if latest.error is not None else "waits"
        if latest.status == "started":
            return "interrupted" if run.holder is None else "running"
        return {"success": "succeeded", "failure": "failed", "waiting": "waits", "reopened": "reopened"}[latest.status]

    def end(self, now: datetime) -> datetime:
        """Return when it ended, or now."""
        return self.latest.ended_at if decided(self.latest) or self.latest.status == "reopened" else now

    def said(self, now: datetime) -> str:
        """Return a short text on its result, its wait or its error, and who acted on it."""
        latest, notes = self.latest, self.latest.notes
        run_id = child_of(latest)
        child = "" if run_id is None else f"run {harmless(run_id)}"
        until = "" if latest.until is None or decided(latest) else f"until {soon(latest.until, now)}"
        by_hand = f"by {cut(str(notes['by']), 40)}" if "by" in notes else ""
        if latest.kind == "approval":
            parts = [until, _approval(latest)]
        elif latest.error is not None:
            parts = [child, until, error_text(latest.error)]
        elif latest.status == "reopened":
            parts = [by_hand, cut(str(notes.get("reason", "")), 80)]
        else:
            parts = [child, until, brief(latest.result), by_hand]
        return ", ".join(filter(None, parts))

    def as_json(self) -> dict[str, Any]:
        """Return the newest entry, when the step began, and how many entries it has."""
        return {**record_json(self.latest), "began_at": self.first.started_at, "entries": self.entries}


class Steps:
    """All steps of a run, in the order in which they began."""

    def __init__(self, entries: Sequence[StepRecord]) -> None:
        self.entries: Final = entries
        self._first: Final[dict[str, int]] = {}
        self._newest: Final[dict[str, tuple[int, int]]] = {}
        self._number: Final[dict[str, int]] = {}
        self._stand_out: Final[set[str]] = set()
        for index, head in enumerate(heads_of(entries)):
            step_id = head.step_id
            if step_id.startswith("$"):
                continue
            self._first.setdefault(step_id, index)
            self._number[step_id] = self._number.get(step_id, 0) + 1
            if step_id not in self._newest or self._newest[step_id][0] < head.revision:
                self._newest[step_id] = head.revision, index
                (self._stand_out.discard if head.status == "success" else self._stand_out.add)(step_id)

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, step_id: str) -> Step:
        first, (_, newest) = self._first[step_id], self._newest[step_id]
        return Step(self.entries[first], self.entries[newest], self._number[step_id])

    def __contains__(self, step_id: object) -> bool:
        return step_id in self._first

    def ids(self) -> Iterable[str]:
        """Return the ids of all steps."""
        return self._first

    def all(self) -> list[Step]:
        """Return every step."""
        return [self[step_id] for step_id in self._first]

    def some(self) -> list[Step | int]:
        """Return the first, the last and the notable steps, and between them the numbers of those left out."""
        ids = [*self._first]
        if len(ids) <= 3 * _ENDS:
            return [*self.all()]
        middle = [step_id for step_id in ids[_ENDS:-_ENDS] if step_id in self._stand_out][-_ENDS:]
        chosen = {*ids[:_ENDS], *middle, *ids[-_ENDS:]}
        shown: list[Step | int] = []
        for step_id in ids:
            if step_id in chosen:
                shown.append(self[step_id])
            elif shown and isinstance(shown[-1], int):
                shown[-1] += 1
            else:
                shown.append(1)
        return shown

    def one(self, run_id: str, step_id: str) -> list[StepRecord]:
        """Return the entries of one step. Raises `NotFound` if there are none."""
        if found := entries_of(self.entries, step_id):
            return sorted(found, key=lambda record: record.revision)
        last = ", ".join(map(repr, [*self._first][-10:])) or "none"
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}; its last steps: {last}")


def votes_of(approval: StepRecord) -> list[dict[str, Any]]:
    """Return the votes of an approval so far."""
    votes = approval.notes.get("votes")
    return [vote for vote in votes if isinstance(vote, dict)] if isinstance(votes, list) else []


def whose(approval: StepRecord) -> list[str]:
    """Return the options of a command that decides an approval: who acts, if only some may."""
    return [] if approval.notes.get("approvers") is None else ["--by", "NAME"]


def _decision(approval: StepRecord) -> dict[str, Any]:
    decision = approval.value()
    return decision if isinstance(decision, dict) else {}


def _approval(record: StepRecord) -> str:
    votes, quorum = votes_of(record), record.notes.get("quorum", 1)
    if record.status == "failure":
        return error_text(record.error)
    if not decided(record):
        shown = brief(msgspec.json.encode(record.notes.get("show")), 100) if "show" in record.notes else ""
        return shown if quorum == 1 else f"{len(votes)} of {quorum} votes, {shown}"
    decision = _decision(record)  # also by hand, which isn't a vote
    who = ", ".join(cut(str(vote.get("by")), 40) for vote in votes or [decision])
    reason = decision.get("reason")
    return f"by {who}" + (f": {cut(str(reason), 100)}" if reason else "")
