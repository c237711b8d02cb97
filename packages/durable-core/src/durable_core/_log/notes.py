"""What the notes of entries say: what `$flow` hands on, whose child a run is, and what it waits for or failed by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from durable_core.record import StepRecord

_LASTING: Final = ("input", "defaults", "asked", "parent", "root", "origin", "deadline", "cancelled", "carried")
"""What each entry of `$flow` carries on in its note. Anything else in a note is of its own entry."""


def lasting(flow: StepRecord) -> dict[str, Any]:
    """Return what the next entry of `$flow` carries on in its note."""
    return {name: flow.notes[name] for name in _LASTING if name in flow.notes}


def parent_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the run and the step that called for this run."""
    return _pair(flow, "parent", "run", "step")


def origin_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the run that this one was forked from, and the step it was forked before."""
    return _pair(flow, "origin", "run", "before")


def root_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the topmost run that drives this one, and its flow's name."""
    return _pair(flow, "root", "run", "flow")


def child_of(step: StepRecord) -> str | None:
    """Return the run that a step called for."""
    child = step.notes.get("run") if step.kind == "flow" and not step.step_id.startswith("$") else None
    return child if isinstance(child, str) and child else None


def children_of(entries: Iterable[StepRecord]) -> list[str]:
    """Return the runs that a run's steps called for, each once, in the order of their calls."""
    return [*dict.fromkeys(child for record in entries if (child := child_of(record)) is not None)]


def waits_of(flow: StepRecord | None) -> list[tuple[str, str]]:
    """Return the runs and steps that a run waits for, or is parked by, as its flow's entry names them."""
    listed = flow.notes.get("waiting_for") if flow is not None else None
    pairs = [tuple(pair) for pair in listed if isinstance(pair, list)] if isinstance(listed, list) else []
    return [pair for pair in pairs if len(pair) == 2 and all(isinstance(each, str) for each in pair)]


def ids_in(record: StepRecord, member: str) -> list[str]:
    """Return the ids that a member of a note lists."""
    listed = record.notes.get(member)
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def _pair(flow: StepRecord | None, member: str, one: str, other: str) -> tuple[str, str] | None:
    named = flow.notes.get(member) if flow is not None else None
    if not isinstance(named, dict):
        return None
    pair = (named.get(one), named.get(other))
    return pair if all(isinstance(each, str) and each for each in pair) else None  # type: ignore[return-value]  # both were looked at


def failed_parts(record: StepRecord) -> list[str]:
    """Return the ids of the steps by which a race or a map failed; none for anything else, which failed by itself."""
    if record.kind not in ("first", "map"):
        return []
    names = ids_in(record, "failed")
    return names if record.kind == "first" else [f"{record.step_id}/{key}" for key in names]
