"""The question of an approval, from its newest entry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from durable_core import Decision
from durable_core.engine import Request
from durable_core.record import StepRecord


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question to people, and their answers so far."""

    record: StepRecord
    show: Any
    quorum: int
    approvers: Sequence[str] | None
    votes: Sequence[Decision]
    agreeing: int
    """The number of people who approve the same value as the last one who answered."""

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
        """True if it waits for somebody. Its run may have ended nevertheless."""
        return self.record.kind == "approval" and self.record.status == "waiting"

    @property
    def takes_value(self) -> bool:
        """True if the flow asks for a value that people may change: the member `edit` of what it shows."""
        return isinstance(self.show, dict) and "edit" in self.show

    @property
    def proposed(self) -> Any:
        """The value to approve: the flow's, or that of the last person who changed it."""
        values = [vote.value for vote in self.votes if vote.approved and vote.value is not None]
        return values[-1] if values else self.show["edit"]

    @property
    def digest(self) -> str:
        """Identifies this question, for example against one with the same ids after the run was cleared.

        It allows guesses about what is shown, so it leaves this process only as `Tokens.mark`.
        """
        asked = [self.run_id, self.step_id, self.show, self.since]
        return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:32]

    def may_decide(self, name: str) -> bool:
        """Return True if a person of this name may decide."""
        return self.approvers is None or name in self.approvers

    def has_voted(self, name: str) -> bool:
        """Return True if a person of this name has answered."""
        return any(vote.by == name for vote in self.votes)


def asked_by(record: StepRecord) -> Asked:
    """Read the question of an approval's entry. Raises `CorruptLog` if its note isn't one of an approval."""
    request = Request.of(record)
    return Asked(
        record=record,
        show=request.show,
        quorum=request.quorum,
        approvers=request.approvers,
        votes=request.votes,
        agreeing=request.agreeing,
    )
