"""Reading the notes of entries: lasting members of `$flow`, parents and children, waits and failures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from durable_core.record import StepRecord

_LASTING: Final = ("input", "defaults", "asked", "parent", "root", "origin", "deadline", "cancelled", "carried")
"""The members that each entry of `$flow` copies from the note of the one before. Others belong to one entry."""


def lasting(flow: StepRecord) -> dict[str, Any]:
    """Return the members of the note that the next entry of `$flow` copies."""
    return {name: flow.notes[name] for name in _LASTING if name in flow.notes}


def parent_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the parent run and the step that called this run."""
    return _pair(flow, "parent", "run", "step")


def origin_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the run from which this one was forked, and the step before which it was forked."""
    return _pair(flow, "origin", "run", "before")


def root_of(flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the topmost run that drives this one, and its flow's name."""
    return _pair(flow, "root", "run", "flow")


def child_of(step: StepRecord) -> str | None:
    """Return the child that a step called."""
    child = step.notes.get("run") if step.kind == "flow" and not step.step_id.startswith("$") else None
    return child if isinstance(child, str) and child else None


def children_of(entries: Iterable[StepRecord]) -> list[str]:
    """Return the children that a run's steps called, each once, in the order of the calls."""
    return [*dict.fromkeys(child for record in entries if (child := child_of(record)) is not None)]


def waits_of(flow: StepRecord | None) -> list[tuple[str, str]]:
    """Return the runs and steps for which a run waits, or which parked it, from its flow's entry."""
    listed = flow.notes.get("waiting_for") if flow is not None else None
    pairs = [tuple(pair) for pair in listed if isinstance(pair, list)] if isinstance(listed, list) else []
    return [pair for pair in pairs if len(pair) == 2 and all(isinstance(each, str) for each in pair)]


def ids_in(record: StepRecord, member: str) -> list[str]:
    """Return the ids in a member of a note."""
    listed = record.notes.get(member)
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def _pair(flow: StepRecord | None, member: str, one: str, other: str) -> tuple[str, str] | None:
    named = flow.notes.get(member) if flow is not None else None
    if not isinstance(named, dict):
        return None
    pair = (named.get(one), named.get(other))
    return pair if all(isinstance(each, str) and each for each in pair) else None  # type: ignore[return-value]  # both were looked at


def failed_parts(record: StepRecord) -> list[str]:
    """Return the ids of the steps that made a race or a map fail; none for other steps."""
    if record.kind not in ("first", "map"):
        return []
    names = ids_in(record, "failed")
    return names if record.kind == "first" else [f"{record.step_id}/{key}" for key in names]
