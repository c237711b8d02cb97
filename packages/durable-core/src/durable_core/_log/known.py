"""What has to be there before anybody acts on it: a store, a run, a step."""

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
    """Refuse what is no store and no id, before anything is asked of the store."""
    check_store(store)
    check_id("run_id", run_id)
    if step_id is not None:
        check_id("step_id", step_id)


def check_own(store: Store, run_id: str, step_id: str) -> None:
    """Refuse what is no store, and ids that are none or the library's."""
    check_store(store)
    check_own_id("run_id", run_id)
    check_own_id("step_id", step_id)


async def known_run(store: Store, run_id: str) -> Sequence[StepRecord]:
    """Return the entries of a run. Raises `NotFound` where there are none."""
    check(store, run_id=run_id)
    if entries := await store.list(run_id):
        return entries
    raise await no_run(store, run_id)


async def known_step(store: Store, run_id: str, step_id: str) -> StepRecord:
    """Return the newest entry of a step. Raises `NotFound` where there is none."""
    check(store, run_id=run_id, step_id=step_id)
    latest = await store.get(run_id, step_id)
    if latest is None:
        there = [name for name in newest(await known_run(store, run_id)) if not name.startswith("$")]
        listed = ", ".join(map(repr, there[-10:])) or "none"
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}; its last steps: {listed}")
    return latest


async def no_run(store: Store, run_id: str) -> NotFound:
    """Return the error for a run that isn't there, which names some that are."""
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
    """Say what a step is and how it stands."""
    return f"{'an' if record.kind in ('approval', 'event') else 'a'} {record.kind} with status {record.status!r}"


def now_by(clock: Clock | None) -> datetime:
    """Return the time of day, the machine's unless a clock is given."""
    return datetime.now(UTC) if clock is None else clock.now()


def person(by: object) -> str:
    """Return the name of who acts. Raises `TypeError` for what is no name, `ValueError` for one that is the library's."""
    if not isinstance(by, str) or not by:
        raise TypeError(f"by must be the name of who acts, not {by!r}")
    if by.startswith("$"):
        raise ValueError(f"by {by!r} starts with '$'; such names are the library's own")
    return by


def signed(reason: str | None, by: str | None) -> dict[str, str]:
    """Return what a note says of who acted and why."""
    said = {"reason": reason, "by": None if by is None else person(by)}
    return {name: value for name, value in said.items() if value is not None}
