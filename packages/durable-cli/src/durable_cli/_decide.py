"""A person decides: what is shown, the question, the decision."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._asked import Asked
from ._output import pretty, write, write_json
from ._question import agree
from ._text import cut, moment, soon

if TYPE_CHECKING:
    from durable_core import Decision, StepRecord, Store

_LINES: Final = 40
_COLUMNS: Final = 2000


class Vote(NamedTuple):
    """What a person wants to say."""

    run_id: str
    step_id: str
    approves: bool
    by: str
    reason: str | None
    value: Any


def decide(asked: Asked, vote: Vote, *, yes: bool) -> None:
    """Show what is asked for, ask whether to decide so, and decide."""
    if not yes:
        waiting = asked.run(lambda store: _waiting(store, vote))
        if waiting is not None and _may_decide(waiting, vote):  # else the library says why it can't be decided
            verb = "Approve" if vote.approves else "Reject"
            agree(f"{verb} {vote.step_id} as {vote.by}?", shown=_shown(waiting, vote, asked))
    record = asked.run(lambda store: _cast(store, vote, asked))
    if asked.as_json:
        write_json(record)
    else:
        write(_outcome(record, vote))


async def _waiting(store: Store, vote: Vote) -> StepRecord | None:
    """Return the approval if nobody has decided it. Raises `NotFound` if there is none."""
    from durable_core.engine import known_step

    record = await known_step(store, vote.run_id, vote.step_id)
    return record if (record.kind, record.status) == ("approval", "waiting") else None


def _may_decide(waiting: StepRecord, vote: Vote) -> bool:
    from durable_core.engine import Request

    approvers = Request.of(waiting).approvers
    return approvers is None or vote.by in approvers


async def _cast(store: Store, vote: Vote, asked: Asked) -> StepRecord:
    import msgspec

    from durable_core import NotFound, Refused
    from durable_core.control import approve, reject

    verb, decide = ("approve", approve) if vote.approves else ("reject", reject)
    try:
        return await decide(store, vote.run_id, vote.step_id, by=vote.by, reason=vote.reason, value=vote.value)
    except NotFound:
        raise
    except Refused as refused:
        waiting = await _waiting(store, vote)
        if waiting is not None and not _may_decide(waiting, vote):
            value = () if vote.value is None else ("--value", msgspec.json.encode(vote.value).decode())
            reason = () if vote.reason is None else ("--reason", vote.reason)
            again = asked.command(verb, vote.run_id, vote.step_id, options=["--by", "NAME", *value, *reason])
            refused.add_note(f"If you are one of them, say which:\n  {again}")
        raise


def _shown(record: StepRecord, vote: Vote, asked: Asked) -> list[str]:
    from durable_core.engine import Request

    from ._words import age

    request = Request.of(record)
    now = datetime.now(UTC)
    named = f" ({cut(record.name, 200)})" if record.name != record.step_id else ""
    until = f", until {moment(record.until)}" if record.until is not None else ""
    since = f"since {soon(record.started_at, now)} ({age(record.started_at, now)})"
    lines = [f"Run {record.run_id} asks for {record.step_id}{named}, {since}{until}."]
    if request.show is not None:
        lines += ["", *_payload(request.show, asked.command("show", record.run_id, options=["--step", record.step_id])), ""]
    if request.approvers is not None:
        lines.append(f"May decide: {cut(', '.join(request.approvers), 500)}.")
    if request.quorum > 1:
        lines.append(f"It takes {request.quorum} people who approve the same value; one who rejects decides.")
    for each in request.votes:
        why = f": {cut(each.reason, 200)}" if each.reason else ""
        lines.append(f"{cut(each.by, 100)} {_verb(each)} {age(each.at, now)} ago{why}")
        if each.value is not None:
            lines += ["with this value:", *_payload(each.value, None)]
    if vote.value is not None:
        lines += ["Your value:", *_payload(vote.value, None)]
    return lines


def _payload(value: Any, whole: str | None) -> list[str]:
    lines = [f"  {line if len(line) <= _COLUMNS else f'{line[:_COLUMNS]}…'}" for line in pretty(value).split("\n")]
    if len(lines) > _LINES:
        rest = f"  … {len(lines) - _LINES:,} lines more" + (f": {whole}" if whole else "")
        lines = [*lines[:_LINES], rest]
    return lines


def _outcome(record: StepRecord, vote: Vote) -> str:
    from durable_core.engine import Request

    request = Request.of(record)
    if record.status == "success":
        decision = request.decision()
        how = "decided" if decision is None else _verb(decision)
        return f"{record.step_id} of {record.run_id} is {how}, by {vote.by}"
    return f"{vote.by} approved {record.step_id} of {record.run_id}: {request.agreeing} of {request.quorum}"


def _verb(vote: Decision) -> str:
    return "approved" if vote.approved else "rejected"
