"""Maps: a step for each of many items, a few at a time, and one entry that records that all were tried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec

from durable_core._calls.arguments import fingerprint_of
from durable_core._log.chain import decided
from durable_core._system.ids import check_own_id
from durable_core._system.waits import to_the_end
from durable_core.errors import SomeFailed, StepDrift, StepFailed
from durable_core.options import Policy
from durable_core.record import StepError, StepRecord

from .call import Call, check_variables, prepare, reused
from .outcome import newest_of, to_retry, value_of
from .run import Run
from .step import run_step

_WORDS: Final = 2**64


class MapCall(msgspec.Struct, frozen=True):
    """One call of `Runner.map`, checked."""

    call: Call
    """The common part of the calls of all items. Its id is the map's."""
    items: Sequence[Any]
    step_ids: Sequence[str]
    """The id of each item's step."""
    limit: int
    tolerate: int

    def key(self, number: int) -> str:
        """Return the key of an item."""
        return self.step_ids[number][len(self.call.step_id) + 1 :]

    def of_item(self, number: int) -> Call:
        """Return the call of one item's step."""
        step_id, args = self.step_ids[number], (self.items[number],)
        # The function may change its own variables, so they are compared only when the map begins.
        name = f"{self.call.name}/{self.key(number)}"
        return msgspec.structs.replace(
            self.call, step_id=step_id, name=name, args=args, fingerprint=fingerprint_of(args), closure=[]
        )


def prepare_map(
    run: Run,
    step_id: str,
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    key: Callable[[Any], object] | None,
    limit: int,
    tolerate: int,
    returns: Any,
    policy: Policy,
    options: dict[str, Any],
) -> MapCall:
    """Check the call before anything runs."""
    step_id = check_own_id("step_id", step_id)
    _check_number("limit", limit, 1)
    _check_number("tolerate", tolerate, 0)
    if key is not None and not callable(key):
        raise TypeError(f"key must be a function of an item, or None to number the items, not {key!r}")
    if not isinstance(items, Iterable):
        raise TypeError(f"items of map {step_id!r} must be an iterable, such as a list, not {items!r}")
    items = [*items]
    step_ids = [check_own_id("step_id", f"{step_id}/{number}") for number in range(len(items))]
    if key is not None:
        step_ids = [check_own_id("step_id", f"{step_id}/{_key(step_id, key(item))}") for item in items]
        if len({*step_ids}) < len(step_ids):
            seen: set[str] = set()
            twice = next(each for each in step_ids if each in seen or seen.add(each))  # type: ignore[func-returns-value]
            raise ValueError(
                f"two items of map {step_id!r} have the key {twice[len(step_id) + 1 :]!r}; give each item its own key"
            )
    call = prepare(run, step_id, fn, (_digest(step_ids, items),), returns, policy, options)
    return MapCall(call, items, step_ids, limit, tolerate)


def _check_number(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, at least {least}, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be a whole number, at least {least}, not {value}")


def _key(step_id: str, key: object) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        raise TypeError(f"key of map {step_id!r} must return a str or an int for each item, not {key!r}")
    return str(key)


def _digest(step_ids: Sequence[str], items: Sequence[Any]) -> str:
    """Return a hash of the items and their keys that doesn't depend on their order."""
    total = 0
    for step_id, item in zip(step_ids, items, strict=True):
        each = blake2b(f"{step_id}\0{fingerprint_of((item,))}".encode(), digest_size=8)
        total += int.from_bytes(each.digest(), "big")
    return f"{len(items)} items, {total % _WORDS:x}"


async def run_map(run: Run, each: MapCall) -> list[Any]:
    """Return the values of all items, in their order. Raises `SomeFailed` if more failed than are tolerated."""
    step_id = each.call.step_id
    if each.call.reuses_id:
        raise reused(run, step_id)
    async with run.alone(step_id):
        mine = "item", step_id
        for item_id in each.step_ids:
            if run.calls.setdefault(item_id, mine) != mine:
                raise reused(run, item_id)
        latest = await newest_of(run, step_id, "map")
        if decided(latest):
            return _recorded(run, each, latest)
        check_variables(run, step_id, each.call.closure)
        started_at = run.clock.now()
        try:
            values, failed = await _try_all(run, each)
            return await _end(run, each, latest, started_at, values, failed)
        finally:
            if step_id in run.running:
                run.end_step(step_id)


run_map.__qualname__ = "Runner.map"  # Python raises this for a coroutine that was never awaited


async def _end(
    run: Run, each: MapCall, latest: StepRecord | None, started_at: datetime, values: list[Any], failed: Mapping[int, StepError]
) -> list[Any]:
    """Record that all items were tried, and return their values, or raise."""
    failures = {each.key(number): failed[number] for number in sorted(failed)}
    record = run.entry(
        each.call.step_id,
        latest,
        kind="map",
        name=each.call.name,
        note={"failed": [*failures]} if failures else None,
        started_at=started_at,
        ended_at=max(run.clock.now(), started_at),
        fingerprint=each.call.fingerprint,
    )
    if len(failures) > each.tolerate:
        error = StepError.from_exception(_some_failed(each, record, values, failures))
        record = msgspec.structs.replace(record, status="failure", error=error)
    recorded = await run.log.outcome(record, None)
    await run.emit_outcome(recorded)
    if recorded.id != record.id:
        return _recorded(run, each, recorded)
    if record.status == "failure":
        raise _some_failed(each, record, values, failures)
    return values


async def _try_all(run: Run, each: MapCall) -> tuple[list[Any], dict[int, StepError]]:
    """Run the step of every item; return the values, and the errors of those that failed, by their number."""
    values: list[Any] = [None] * len(each.items)
    failed: dict[int, StepError] = {}
    problems: list[BaseException] = []
    left = iter(range(len(each.items)))
    step_id, mine, at_work = each.call.step_id, asyncio.current_task(), min(each.limit, len(each.items))

    async def work() -> None:
        nonlocal at_work
        if step_id in run.running:
            run.end_step(step_id)
        for number in left:  # which all workers share
            try:
                values[number] = await run_step(run, each.of_item(number))
            except StepFailed as failure:
                failed[number] = failure.error
            except BaseException as problem:
                problems.append(problem)
                raise
            if problems:
                return
        at_work -= 1
        if not at_work:
            run.running[step_id] = mine

    run.running[step_id] = mine  # until the first step begins, and after the last: no sibling suspends the run meanwhile
    workers = [asyncio.create_task(work()) for _ in range(at_work)]
    try:
        if workers:
            await asyncio.wait(workers)
    except asyncio.CancelledError:
        for worker in workers:
            worker.cancel()
        await to_the_end(asyncio.wait(workers))
        raise
    finally:
        for worker in workers:
            if worker.done() and not worker.cancelled():
                worker.exception()  # the first one is raised for all
    if problems:
        raise problems[0]
    return values, failed


def _recorded(run: Run, each: MapCall, record: StepRecord) -> list[Any]:
    """Return the recorded values of the items, or raise the failure."""
    if record.fingerprint != each.call.fingerprint:
        run.tell_drift(
            f"map {record.step_id!r} of run {run.id!r} was recorded with other items than it is now called with; the recorded"
            " outcomes are used. To run it again, give it another id",
            record.step_id,
            stacklevel=5,
        )
    values: list[Any] = []
    failures: dict[str, StepError] = {}
    for number, step_id in enumerate(each.step_ids):
        entry = run.log.latest(step_id)
        if entry is None:
            raise StepDrift(
                f"map {record.step_id!r} of run {run.id!r} has ended, and {step_id!r} was not among its items; nothing was run."
                " To run the map for new items, give it another id",
                step_id=record.step_id,
            )
        run.check_kind(entry, "step")
        values.append(None)
        if entry.status == "success" and each.call.codec is not None:
            values[number] = value_of(entry, each.call.codec)
        elif entry.error is not None:
            failures[each.key(number)] = entry.error
    if record.status == "success":
        return values
    raised = _some_failed(each, record, values, failures)
    when = record.ended_at.isoformat(timespec="seconds")
    raised.add_note(f"recorded at {when}; nothing was run again; {to_retry(record)}")
    raise raised


def _some_failed(each: MapCall, record: StepRecord, values: Sequence[Any], failures: Mapping[str, StepError]) -> SomeFailed:
    """Make the error of a map, with the values of items that succeeded."""
    keys = map(each.key, range(len(each.items)))
    return SomeFailed(record, {key: value for key, value in zip(keys, values, strict=True) if key not in failures}, failures)
