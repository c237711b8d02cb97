"""Approvals: what people are asked, and what they decide."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypedDict

import msgspec

from durable_core._calls.arguments import fingerprint_of
from durable_core._log.chain import successor
from durable_core._values.returns import record_any
from durable_core.errors import CorruptLog, DeadlinePassed
from durable_core.options import duration, unknown_option
from durable_core.record import StepError, StepRecord

DEADLINE: Final = "$deadline"
"""The name under which an approval is rejected when its time is over."""

OnTimeout = Literal["fail", "reject"]


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of an approval. The record's note contains what was shown and every vote."""

    approved: bool
    by: str
    """Who cast the deciding vote. The name is recorded as given, not authenticated."""
    reason: str | None
    at: datetime
    value: Any = None
    """The value with the person's changes, as JSON; None if nothing was changed."""

    def __bool__(self) -> bool:
        """Return True if it was approved, so that `if await runner.approval(...):` works."""
        return self.approved


class Approvals(TypedDict, total=False):
    """Options of `Runner.approval` that are set before a person is asked, such as for an agent's tools."""

    quorum: int
    """The number of different people who must approve, with the same arguments; by default 1. One rejection decides."""
    approvers: Collection[str] | None
    """The names of the people who may decide; by default anyone."""
    timeout: float | timedelta | None
    """The time to decide, in seconds or as a timedelta."""
    on_timeout: OnTimeout
    """By default, an approval that nobody decides in time is rejected, and the model learns that. "fail" makes the run fail."""


def check_approvals(options: Approvals) -> Approvals:
    """Check options of approvals before a person is asked, and return them unchanged.

    Raises `TypeError` for an unknown option or a wrong type, and `ValueError` for a value out of range.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"approvals must be a dict, such as Approvals(quorum=2), not {options!r}")
    for name in options:
        if name not in Approvals.__annotations__:
            raise unknown_option(name, Approvals.__annotations__)
    Request.make("", None, options.get("quorum", 1), options.get("approvers"), options.get("on_timeout", "reject"))
    if (timeout := options.get("timeout")) is not None:
        duration("timeout", timeout, zero=False)
    return options


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """The note of an approval's entries."""

    show: Any = None
    quorum: int = 1
    approvers: tuple[str, ...] | None = None
    votes: tuple[Decision, ...] = ()
    """The vote of each person; the newest vote comes last."""
    on_timeout: OnTimeout = "fail"

    @classmethod
    def make(
        cls, step_id: str, show: object, quorum: int, approvers: Iterable[str] | None, on_timeout: OnTimeout = "fail"
    ) -> Request:
        """Check the arguments. Raises `ValueError` for an impossible quorum, `TypeError` for a value that can't be recorded."""
        if isinstance(approvers, str):
            raise TypeError(f"approvers must be a list of names, not one str; write [{approvers!r}]")
        names = None if approvers is None else tuple(dict.fromkeys(approvers))
        for name in names or ():
            if not isinstance(name, str) or not name:
                raise TypeError(f"each of approvers must be a name, not {name!r}")
        if isinstance(quorum, bool) or not isinstance(quorum, int):
            raise TypeError(f"quorum must be a whole number of people, at least 1, not {quorum!r}")
        most = None if names is None else len(names)
        if quorum < 1 or (most is not None and quorum > most):
            limit = "" if most is None else f" and at most {most}, the number of approvers"
            raise ValueError(f"quorum must be at least 1{limit}, not {quorum!r}")
        if on_timeout not in ("fail", "reject"):
            raise ValueError(f"on_timeout must be 'fail' or 'reject', not {on_timeout!r}")
        shown = msgspec.json.decode(record_any(show, f"what approval {step_id!r} shows"))
        return cls(shown, quorum, names, on_timeout=on_timeout)

    @classmethod
    def of(cls, record: StepRecord) -> Request:
        """Return the request in the note of an approval's entry. Raises `CorruptLog` if the note isn't one."""
        try:
            return msgspec.convert(record.note or {}, cls)
        except msgspec.ValidationError as error:
            where = f"approval {record.step_id!r} of run {record.run_id!r}, revision {record.revision}"
            raise CorruptLog(f"the note of {where} can't be read: {error}") from error

    @property
    def fingerprint(self) -> str | None:
        """A hash of what is shown. A decision is valid only for that."""
        return fingerprint_of((self.show,))

    def note(self) -> Any:
        """Return this as JSON."""
        return msgspec.json.decode(msgspec.json.encode(self))

    def decision(self) -> Decision | None:
        """Return the decision of the votes, or None. One rejection decides, as do `quorum` people who approve the same value."""
        last = self.votes[-1] if self.votes else None
        if last is None or not last.approved:
            return last
        return msgspec.structs.replace(last, value=self._values()[-1]) if self.agreeing >= self.quorum else None

    @property
    def agreeing(self) -> int:
        """The number of people who approve the same value as the last one who approved."""
        values = [msgspec.json.encode(value, order="deterministic") for value in self._values()]
        return values.count(values[-1]) if values else 0

    def _values(self) -> list[Any]:
        """Return the value that each person approves: their own, or else the one that the previous person approved."""
        values: list[Any] = []
        for vote in self.votes:
            if vote.approved:
                values.append(values[-1] if vote.value is None and values else vote.value)
        return values

    def holds(self, vote: Decision) -> bool:
        """Return True if the same person gave the same vote before."""
        return any((vote.by, vote.approved, vote.value) == (other.by, other.approved, other.value) for other in self.votes)

    def with_vote(self, vote: Decision) -> Request:
        """Return this with one more vote, which replaces an earlier one of the same person."""
        others = tuple(other for other in self.votes if other.by != vote.by)
        return msgspec.structs.replace(self, votes=(*others, vote))


def overdue(waiting: StepRecord, now: datetime) -> StepRecord:
    """Return the entry that ends a wait whose time has come: a sleep succeeds, an approval may be rejected, others fail."""
    if waiting.kind == "sleep":
        return successor(waiting, now, status="success")
    assert waiting.until is not None
    reason = f"nobody decided {waiting.step_id!r} before {waiting.until.isoformat(timespec='seconds')}"
    if waiting.kind != "approval" or (request := Request.of(waiting)).on_timeout != "reject":
        return successor(waiting, now, status="failure", error=StepError.from_exception(DeadlinePassed(reason)))
    request = request.with_vote(Decision(False, DEADLINE, reason, now))
    return successor(waiting, now, status="success", result=msgspec.json.encode(request.decision()), note=request.note())
