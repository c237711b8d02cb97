"""Checks before acting on a run: the store, the run and the step must exist."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from durable_core._system.ids import check_id, check_own_id
from durable_core.clock import Clock
from durable_core.errors import NotFound
from durable_core.record import StepRecord
from durable_core.store import Store, check_store, runs_of

from .chain import newest


def check(store: Store, *, run_id: str, step_id: str | None = None) -> None:
    """Check the store and the ids before the store is used."""
    check_store(store)
    check_id("run_id", run_id)
    if step_id is not None:
        check_id("step_id", step_id)


def check_own(store: Store, run_id: str, step_id: str) -> None:
    """Check the store and the ids, and refuse ids that are reserved for the library."""
    check_store(store)
    check_own_id("run_id", run_id)
    check_own_id("step_id", step_id)


async def known_run(store: Store, run_id: str) -> Sequence[StepRecord]:
    """Return the entries of a run. Raises `NotFound` if there are none."""
    check(store, run_id=run_id)
    if entries := await store.list(run_id):
        return entries
    raise await no_run(store, run_id)


async def known_step(store: Store, run_id: str, step_id: str) -> StepRecord:
    """Return the newest entry of a step. Raises `NotFound` if there is none."""
    check(store, run_id=run_id, step_id=step_id)
    latest = await store.get(run_id, step_id)
    if latest is None:
        there = [name for name in newest(await known_run(store, run_id)) if not name.startswith("$")]
        listed = ", ".join(map(repr, there[-10:])) or "none"
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}; its last steps: {listed}")
    return latest


async def no_run(store: Store, run_id: str) -> NotFound:
    """Return the error for a run that doesn't exist, with the ids of some that do."""
    there = ""
    if listing := runs_of(store):
        found: list[str] = []
        async for other in listing.runs():
            if not other.startswith("$"):
                found.append(other)
            if len(found) == 10:
                break
        there = f"; runs there: {', '.join(map(repr, sorted(found)))}" if found else "; there are no runs at all"
    return NotFound(f"there is no run {run_id!r} in this store{there}")


def describe(record: StepRecord) -> str:
    """Describe a step: its kind and status."""
    return f"{'an' if record.kind in ('approval', 'event') else 'a'} {record.kind} with status {record.status!r}"


def now_by(clock: Clock | None) -> datetime:
    """Return the time of day, by the machine's clock unless another is given."""
    return datetime.now(UTC) if clock is None else clock.now()


def person(by: object) -> str:
    """Return the name of the person who acts. Raises `TypeError` if it is not a name, `ValueError` if it is reserved."""
    if not isinstance(by, str) or not by:
        raise TypeError(f"by must be the name of the person who acts, not {by!r}")
    if by.startswith("$"):
        raise ValueError(f"by {by!r} starts with '$', which is reserved for the library; choose another name")
    return by


def signed(reason: str | None, by: str | None) -> dict[str, str]:
    """Return the part of a note that says who acted and why."""
    said = {"reason": reason, "by": None if by is None else person(by)}
    return {name: value for name, value in said.items() if value is not None}
