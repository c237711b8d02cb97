"""What a person is asked, and what the person decided."""

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
"""Who rejects what nobody decided in time."""

OnTimeout = Literal["fail", "reject"]


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of an approval. The record's note holds what was shown and every vote."""

    approved: bool
    by: str
    """Who cast the vote that decided: recorded as given, not authenticated."""
    reason: str | None
    at: datetime
    value: Any = None
    """What the person changed, as JSON."""

    def __bool__(self) -> bool:
        """Tell whether it approves, so that `if await runner.approval(...):` means what it says."""
        return self.approved


class Approvals(TypedDict, total=False):
    """Who decides what an agent wants to do: options of `Runner.approval`, for code that says them before anybody is asked."""

    quorum: int
    """How many different people have to approve, with the same arguments; 1 unless given. One rejection decides."""
    approvers: Collection[str] | None
    """The names of those who may decide; anyone unless given."""
    timeout: float | timedelta | None
    """Seconds to decide in."""
    on_timeout: OnTimeout
    """What nobody decided in time is rejected, and the model is told so; with `fail` the run fails instead."""


def check_approvals(options: Approvals) -> Approvals:
    """Return options of approvals as they are, for code that takes them long before a person is asked.

    Raises `TypeError` for an unknown option or another type, `ValueError` for what is out of range.
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
    """What an approval's entries carry as their note."""

    show: Any = None
    quorum: int = 1
    approvers: tuple[str, ...] | None = None
    votes: tuple[Decision, ...] = ()
    """What each person said, last the one who spoke last."""
    on_timeout: OnTimeout = "fail"

    @classmethod
    def make(
        cls, step_id: str, show: object, quorum: int, approvers: Iterable[str] | None, on_timeout: OnTimeout = "fail"
    ) -> Request:
        """Check what is asked for. Raises `ValueError` for a quorum out of reach, `TypeError` for what can't be shown."""
        if isinstance(approvers, str):
            raise TypeError(f"approvers must be several names, not one text; write [{approvers!r}]")
        names = None if approvers is None else tuple(dict.fromkeys(approvers))
        for name in names or ():
            if not isinstance(name, str) or not name:
                raise TypeError(f"approvers must be names, not {name!r}")
        if isinstance(quorum, bool) or not isinstance(quorum, int):
            raise TypeError(f"quorum must be a whole number of people from 1, not {quorum!r}")
        most = None if names is None else len(names)
        if quorum < 1 or (most is not None and quorum > most):
            limit = "" if most is None else f" to {most}, the number of approvers"
            raise ValueError(f"quorum must be from 1{limit}, not {quorum!r}")
        if on_timeout not in ("fail", "reject"):
            raise ValueError(f"on_timeout must be 'fail' or 'reject', not {on_timeout!r}")
        shown = msgspec.json.decode(record_any(show, f"what approval {step_id!r} shows"))
        return cls(shown, quorum, names, on_timeout=on_timeout)

    @classmethod
    def of(cls, record: StepRecord) -> Request:
        """Return what an approval's entry carries. Raises `CorruptLog` for a note that no approval has."""
        try:
            return msgspec.convert(record.note or {}, cls)
        except msgspec.ValidationError as error:
            where = f"approval {record.step_id!r} of run {record.run_id!r}, revision {record.revision}"
            raise CorruptLog(f"the note of {where} can't be read: {error}") from error

    @property
    def fingerprint(self) -> str | None:
        """A hash of what is shown: a decision holds for that alone."""
        return fingerprint_of((self.show,))

    def note(self) -> Any:
        """Return this as JSON."""
        return msgspec.json.decode(msgspec.json.encode(self))

    def decision(self) -> Decision | None:
        """Return what the votes amount to: one rejection decides, and so do `quorum` people who approve the same value."""
        last = self.votes[-1] if self.votes else None
        if last is None or not last.approved:
            return last
        return msgspec.structs.replace(last, value=self._values()[-1]) if self.agreeing >= self.quorum else None

    @property
    def agreeing(self) -> int:
        """How many people approve the same value as the last one who approved."""
        values = [msgspec.json.encode(value, order="deterministic") for value in self._values()]
        return values.count(values[-1]) if values else 0

    def _values(self) -> list[Any]:
        """Return the value that each person approves: without one of their own, what the last one before them made of it."""
        values: list[Any] = []
        for vote in self.votes:
            if vote.approved:
                values.append(values[-1] if vote.value is None and values else vote.value)
        return values

    def holds(self, vote: Decision) -> bool:
        """Tell whether the same person said the same before."""
        return any((vote.by, vote.approved, vote.value) == (other.by, other.approved, other.value) for other in self.votes)

    def with_vote(self, vote: Decision) -> Request:
        """Return this with one more vote, in place of what the same person said before."""
        others = tuple(other for other in self.votes if other.by != vote.by)
        return msgspec.structs.replace(self, votes=(*others, vote))


def overdue(waiting: StepRecord, now: datetime) -> StepRecord:
    """Return the entry that ends a wait whose time has come: a sleep is over, an approval may be rejected, the rest fails."""
    if waiting.kind == "sleep":
        return successor(waiting, now, status="success")
    assert waiting.until is not None
    reason = f"nobody decided {waiting.step_id!r} before {waiting.until.isoformat(timespec='seconds')}"
    if waiting.kind != "approval" or (request := Request.of(waiting)).on_timeout != "reject":
        return successor(waiting, now, status="failure", error=StepError.from_exception(DeadlinePassed(reason)))
    request = request.with_vote(Decision(False, DEADLINE, reason, now))
    return successor(waiting, now, status="success", result=msgspec.json.encode(request.decision()), note=request.note())
