"""What an approval asks, read off its newest entry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from durable_core import Decision
from durable_core.errors import CorruptLog
from durable_core.record import StepRecord


class _Note(msgspec.Struct, frozen=True):
    show: Any = None
    quorum: int = 1
    approvers: tuple[str, ...] | None = None
    votes: tuple[Decision, ...] = ()


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question to people, and what they have said so far."""

    record: StepRecord
    show: Any
    quorum: int
    approvers: Sequence[str] | None
    votes: Sequence[Decision]

    @property
    def run_id(self) -> str:
        return self.record.run_id

    @property
    def step_id(self) -> str:
        return self.record.step_id

    @property
    def since(self) -> datetime:
        return self.record.started_at

    @property
    def until(self) -> datetime | None:
        return self.record.until

    @property
    def is_open(self) -> bool:
        """Whether it waits for somebody; its run may be over all the same."""
        return self.record.kind == "approval" and self.record.status == "waiting"

    @property
    def takes_value(self) -> bool:
        """Whether the flow asks for a value that people may change: the member `edit` of what it shows."""
        return isinstance(self.show, dict) and "edit" in self.show

    @property
    def digest(self) -> str:
        """Tells this question from any other, such as one that was asked under the same ids after the run was cleared.

        Whoever sees it can guess what is shown, so it leaves this process only as `Tokens.mark`.
        """
        asked = [self.run_id, self.step_id, self.show, self.since]
        return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:32]

    def may_decide(self, name: str) -> bool:
        """Tell whether somebody of this name is asked."""
        return self.approvers is None or name in self.approvers

    def has_voted(self, name: str) -> bool:
        """Tell whether somebody of this name has said something."""
        return any(vote.by == name for vote in self.votes)


def asked_by(record: StepRecord) -> Asked:
    """Read what an approval's entry asks. Raises `CorruptLog` for a note that no approval has."""
    try:
        note = msgspec.convert(record.note or {}, _Note)
    except msgspec.ValidationError as error:
        raise CorruptLog(f"the note of approval {record.step_id!r} of run {record.run_id!r} can't be read: {error}") from error
    return Asked(record=record, show=note.show, quorum=note.quorum, approvers=note.approvers, votes=note.votes)
