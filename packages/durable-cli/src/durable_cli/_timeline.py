"""Drawing a run: its state, the timeline of its steps, and one step in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.text import Text

from durable_core import StepRecord
from durable_core.control import RunStatus
from durable_core.engine import decided

from ._asked import Asked
from ._steps import Step, Steps, votes_of
from ._table import Cell, table
from ._text import brief, cut, harmless, moment, span
from ._words import STYLES, about, age, error_text, styled

_BAR: Final = 12
_WIDE_BAR: Final = 30  # on screens of more than a hundred columns
_FULL: Final = 10_000  # characters of a value or a traceback on a screen; `--json` shows all


def drawn(run: RunStatus, steps: Steps, asked: Asked, width: int, *, all_steps: bool = False) -> Iterator[Text]:
    """Return the lines of a run."""
    now = datetime.now(UTC)
    yield from _head(run, now, width)
    if not len(steps):
        return
    yield Text()
    bar = _WIDE_BAR if 100 < width < 1000 else _BAR
    end = now if run.status not in ("succeeded", "failed", "cancelled") else run.changed_at
    shown: Sequence[Step | int] = steps.all() if all_steps else steps.some()
    rows: list[Sequence[Cell]] = []
    left_out = 0
    for step in shown:
        if isinstance(step, int):
            left_out += step
            rows.append([Text(f"… {step:,} more", style="dim"), "", "", "", "", ""])
        else:
            rows.append(_row(run, step, now, bar, (run.started_at, end)))
    yield from table(("STEP", "STATE", "TRIES", "TOOK", "", ""), rows, width)
    if left_out:
        yield Text(f"\nAll {len(steps):,} steps:\n  {asked.command('show', run.run_id, options=['--all'])}", style="dim")
    if run.status in ("failed", "crashed", "parked", "interrupted", "waiting", "cancelling"):
        yield Text(f"\nWhy, and what would help:\n  {asked.command('why', run.run_id)}", style="dim")


def _head(run: RunStatus, now: datetime, width: int) -> Iterator[Text]:
    yield Text.assemble((harmless(run.run_id), "bold"), "  ", cut(run.flow or "no flow", 40), "  ", styled(run.status))
    if said := about(run, now):
        yield _within(f"  {said}", width)
    took = f", took {span(run.changed_at - run.started_at)}" if run.status in ("succeeded", "failed", "cancelled") else ""
    yield Text(f"  began {moment(run.started_at)}, {age(run.started_at, now)} ago{took}")
    if run.input:
        yield _within(f"  input {brief(msgspec.json.encode(run.input))}", width)
    for what, pair in (("called by step {1} of run {0}", run.parent), ("forked from run {0}, before step {1}", run.origin)):
        if pair is not None:
            yield Text("  " + what.format(*map(harmless, pair)))


def _row(run: RunStatus, step: Step, now: datetime, width: int, of: tuple[datetime, datetime]) -> Sequence[Cell]:
    state, end = step.state(run), step.end(now)
    is_open = end is now
    name = Text(harmless(step.step_id))
    if step.latest.name != step.step_id:
        name.append(f" {cut(step.latest.name, 40)}", style="dim")
    took = span(max(0.0, (end - step.first.started_at).total_seconds()))
    tries = str(step.latest.attempt) if step.latest.kind == "step" else ""
    if step.latest.kind == "published":
        tries, took = f"{step.entries}x", ""
    bar = _bar(step.first.started_at, end, of, width, STYLES.get(state, ""), is_open=is_open)
    return name, styled(state), tries, took, bar, step.said(now)


def _bar(began: datetime, ended: datetime, of: tuple[datetime, datetime], width: int, style: str, *, is_open: bool) -> Text:
    """Draw the time of a step within the run, at least one mark wide. What is in progress is lighter."""
    whole = max((of[1] - of[0]).total_seconds(), 1e-6)
    start, stop = (min(max((at - of[0]).total_seconds() / whole, 0), 1) * width for at in (began, ended))
    first = min(int(start), width - 1)
    last = max(first + 1, round(stop))
    return Text.assemble(("·" * first, "dim"), (("░" if is_open else "█") * (last - first), style), ("·" * (width - last), "dim"))


def in_full(run: RunStatus, step: Step, chain: Sequence[StepRecord]) -> Iterator[Text]:
    """Return the lines of one step with all of its entries."""
    now, latest = datetime.now(UTC), step.latest
    yield Text.assemble(
        (harmless(latest.step_id), "bold"), "  ", styled(step.state(run)), f"  {latest.kind} of run {harmless(run.run_id)}"
    )
    if latest.name != latest.step_id:
        yield Text(f"  named {harmless(latest.name)}")
    took = (
        f", took {span(latest.ended_at - step.first.started_at)}"
        if decided(latest)
        else f", {age(step.first.started_at, now)} ago"
    )
    yield Text(f"  began {moment(step.first.started_at)}{took}")
    if latest.until is not None:
        yield Text(f"  until {moment(latest.until)}")
    for vote in votes_of(latest):
        said = "approved" if vote.get("approved") else "rejected"
        reason = f": {harmless(str(vote['reason']))}" if vote.get("reason") else ""
        changed = f", with {_json(vote['value'])}" if vote.get("value") is not None else ""
        yield Text(f"  {said} by {harmless(str(vote.get('by')))}{reason}{changed}")
    yield Text("\nEntries", style="dim")
    rows: list[Sequence[Cell]] = [
        (str(record.revision), moment(record.ended_at), styled(record.status), str(record.attempt), _entry(record))
        for record in chain
    ]
    yield from table(("", "AT", "STATUS", "TRY", ""), rows, 10_000, ids=0)
    for title, value in (("Note", latest.note), ("Result", latest.value() if latest.result is not None else None)):
        if value is not None:
            yield Text(f"\n{title}", style="dim")
            yield Text(_json(value, indent=2))
    if latest.error is not None:
        yield Text("\nError", style="dim")
        yield Text(_limited(f"{latest.error.type}: {latest.error.message}"), style="red")
        if latest.error.data is not None:
            yield Text(_json(latest.error.data, indent=2))
        yield Text(_limited(latest.error.traceback))


def _entry(record: StepRecord) -> str:
    notes = record.notes
    until = f"until {moment(record.until)}" if record.until is not None and record.status == "waiting" else ""
    by = f"by {cut(str(notes['by']), 40)}" if "by" in notes else ""
    reason = cut(str(notes["reason"]), 100) if "reason" in notes else ""
    vote = votes_of(record)[-1] if votes_of(record) else None
    voted = "" if vote is None else f"{'approved' if vote.get('approved') else 'rejected'} by {cut(str(vote.get('by')), 40)}"
    return ", ".join(part for part in (error_text(record.error), voted, until, by, reason) if part)


def _json(value: Any, *, indent: int = 0) -> str:
    """Return a JSON value as text to read, cut where it is very long."""
    encoded = msgspec.json.encode(value)
    if len(encoded) <= 4 * _FULL:
        encoded = msgspec.json.format(encoded, indent=indent)
    return _limited(encoded[: 4 * _FULL].decode(errors="ignore"), len(encoded))


def _limited(text: str, size: int = 0) -> str:
    shown = harmless(text[:_FULL], keep_lines=True).rstrip("\n")
    return shown if len(text) <= _FULL else f"{shown}…\n… cut; in all {max(size, len(text)):,} characters: --json has them"


def _within(text: str, width: int) -> Text:
    line = Text(text)
    line.truncate(width, overflow="ellipsis")
    return line
