"""Races: the first contender that succeeds wins, one entry records the winner, and the waits of the others are withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import partial
from inspect import iscoroutine
from typing import Any

import msgspec

from durable_core._calls.functions import identity_of
from durable_core._log.chain import advance, decided, successor
from durable_core._log.notes import ids_in
from durable_core._system.ids import check_own_id
from durable_core._system.waits import answered
from durable_core._values.annotations import Closure, closure_of
from durable_core.errors import RunCancelled, StepDrift, StepFailed, Withdrawn
from durable_core.record import StepError, StepRecord

from .call import check_variables, use_id
from .outcome import failed_before, newest_of, to_retry
from .race import LOSING, Contender, Race, Wait, called, is_within
from .run import Run

Contenders = Mapping[str, Callable[[], Awaitable[Any]]]


def first(
    run: Run, step_id: str, contenders: Mapping[str, Any], call: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None
) -> Coroutine[Any, Any, tuple[str, Any]]:
    """Check the call and note its identity before anything runs; return a coroutine that lets the contenders race.

    `call` calls contenders that are plain functions.
    """
    step_id = check_own_id("step_id", step_id)
    if not contenders:
        raise ValueError(f"first {step_id!r} has no contenders; write first({step_id!r}, rail=lambda: runner.step(…), …)")
    for name, fn in contenders.items():
        if not callable(fn):
            for given in contenders.values():
                if iscoroutine(given):
                    given.close()  # or Python would warn that nobody awaited it
            raise TypeError(
                f"contender {name!r} of {step_id!r} must be a function without arguments, not {fn!r}; write"
                f" {name}=lambda: runner.step(…), so that it is called only if it is needed"
            )
    use_id(run, step_id, ("first", [(name, identity_of(fn, ())[0]) for name, fn in contenders.items()]))
    closure = [each for fn in contenders.values() for each in closure_of(fn)]
    if call is not None:
        contenders = {name: partial(call, fn) for name, fn in contenders.items()}
    return _first(run, step_id, contenders, closure)


async def _first(run: Run, step_id: str, contenders: Contenders, closure: Closure) -> tuple[str, Any]:
    """Return the name and the value of the winner; let the contenders race if none has won."""
    async with run.alone(step_id):
        latest = await newest_of(run, step_id, "first")
        if decided(latest):
            return await _recorded(run, contenders, latest)
        check_variables(run, step_id, closure)
        return await _race(run, step_id, contenders, latest)


_first.__qualname__ = "Runner.first"  # Python raises this for a coroutine that was never awaited


async def _race(run: Run, step_id: str, contenders: Contenders, latest: StepRecord | None) -> tuple[str, Any]:
    started_at = run.clock.now()
    race = Race(run, step_id, contenders)
    with race.going_on():
        try:
            await race.start()
            winner = await _winner(run, race)
            race.call_off([each for each in race.contenders if each is not winner])
            record = _entry(run, race, latest, started_at, winner)
            recorded = await run.log.outcome(record, None if winner is None else winner.name)
        except BaseException as error:
            race.call_off(race.contenders)
            await race.end(wait_for_threads=isinstance(error, asyncio.CancelledError))
            raise
        await run.emit_outcome(recorded)
        await race.end()
        if recorded.id != record.id:  # from another runner, whose entries this one has not seen
            for entry in await answered(run.store.list(run.id)):
                run.log.add(entry)
            return await _recorded(run, contenders, recorded)
        if winner is None:
            raise StepFailed(recorded) from race.ended[-1].task.exception()
        await _end_children(race.contenders, winner)
        await _withdraw(run, _left_waiting(run, race, winner))
        return winner.name, winner.task.result()


async def _winner(run: Run, race: Race) -> Contender | None:
    """Wait until one succeeds, and return it, or until all have failed. Raises anything that isn't a step's failure."""
    while True:
        if winner := next((each for each in race.ended if each.has_won), None):
            return winner
        for contender in race.ended:
            if not contender.has_lost:
                try:
                    contender.task.result()
                except RunCancelled:
                    await _let_them_hear(run, race)
                    raise
        if len(race.ended) == len(race.contenders):
            return None
        left = [each.task for each in race.contenders if each not in race.ended]
        await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)


async def _let_them_hear(run: Run, race: Race) -> None:
    """Let contenders continue that are in a step or a wait. Their run was cancelled; each gets that, and may undo what it did."""
    for contender in race.contenders:
        contender.gate.set()
    while True:
        await run.turn()
        left = [each for each in race.contenders if not each.task.done() and (each.waiting or _is_at_a_step(run, each))]
        if not left:
            return
        an_end = asyncio.ensure_future(run.an_end())
        try:
            await asyncio.wait([*(each.task for each in left), an_end], return_when=asyncio.FIRST_COMPLETED)
        finally:
            an_end.cancel()


def _is_at_a_step(run: Run, contender: Contender) -> bool:
    return any(is_within(step_id, contender.step_ids) for step_id in run.running)


def _entry(run: Run, race: Race, latest: StepRecord | None, started_at: datetime, winner: Contender | None) -> StepRecord:
    """Return the entry that records the winner and what the others asked for, or that all have failed."""
    others = [each for each in race.contenders if each is not winner]
    won = winner.step_ids if winner is not None else {}
    asked = {step_id: None for each in others for step_id in [*each.step_ids] if step_id not in won}  # a thread may add some
    fields: dict[str, Any] = {"kind": "first", "started_at": started_at, "ended_at": max(run.clock.now(), started_at)}
    if winner is None:
        failures = [error for each in race.ended if isinstance(error := each.task.exception(), LOSING)]
        last = failures[-1]
        described = last.error if isinstance(last, StepFailed) else StepError.from_exception(last)
        note = {"begun": [*asked], "failed": [failure.step_id for failure in failures if failure.run_id == run.id]}
        fields |= {"status": "failure", "error": described}
    else:
        note = {"begun": [*asked], "lost": [wait.step_id for wait in _left_waiting(run, race, winner)]}
        fields |= {"result": msgspec.json.encode(winner.name)}
    note = {name: ids for name, ids in note.items() if ids}
    return run.entry(race.step_id, latest, note=note or None, **fields)


def _left_waiting(run: Run, race: Race, winner: Contender) -> list[Wait]:
    """Return the waits without an outcome that only losers asked for."""
    asked = {wait.step_id: wait for each in race.contenders if each is not winner for wait in each.waits.values()}
    return [wait for step_id, wait in asked.items() if step_id not in winner.waits and not decided(run.log.latest(step_id))]


async def _end_children(contenders: Iterable[Contender], winner: Contender | None = None) -> None:
    """End the children of the losers, one after the other."""
    for contender in contenders:
        for step_id, wait in contender.waits.items():
            if wait.end is not None and contender is not winner and (winner is None or step_id not in winner.waits):
                await wait.end()


async def _withdraw(run: Run, waits: Iterable[Wait]) -> None:
    """End waits that are no longer needed, unless they were decided meanwhile."""
    await asyncio.gather(
        *(advance(run.log.claim, run.log.latest(wait.step_id), partial(_withdrawal, run, wait)) for wait in waits)
    )


def _withdrawal(run: Run, wait: Wait, latest: StepRecord | None) -> StepRecord | None:
    if decided(latest):
        return None
    error = StepError.from_exception(Withdrawn(f"nobody needs {wait.step_id!r} any more: another contender was first"))
    if latest is not None:
        return successor(latest, run.clock.now(), status="failure", error=error)
    # Its first entry was being appended when it lost, and may still reach the store. This one takes its place.
    return run.entry(wait.step_id, None, status="failure", kind=wait.kind, name=wait.name, error=error)


async def _recorded(run: Run, contenders: Contenders, record: StepRecord) -> tuple[str, Any]:
    """Return the recorded winner's name and its value, which replays. The others don't begin."""
    run.passed_over.update(ids_in(record, "begun"))
    if record.status == "failure":
        raise failed_before(record, to_retry(record))
    name = record.value()
    if not isinstance(name, str) or name not in contenders:
        raise StepDrift(
            f"first {record.step_id!r} of run {run.id!r} was won by {name!r}, which is no longer a contender; the contenders are"
            f" {', '.join(contenders)}. Keep that contender, or give the race another id",
            step_id=record.step_id,
        )
    lost = [entry for step_id in ids_in(record, "lost") if (entry := run.log.latest(step_id)) is not None and not decided(entry)]
    if run.replay is not None:
        lost = []  # who goes on with the run ends them
    if any(entry.kind == "flow" for entry in lost):
        race = Race(run, record.step_id, {other: fn for other, fn in contenders.items() if other != name})
        await race.look_for_children()
        await _end_children(race.contenders)
    await _withdraw(run, [Wait(entry.step_id, entry.name, entry.kind) for entry in lost])
    return name, await called(record.step_id, name, contenders[name])
