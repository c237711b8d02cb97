"""A flow that a flow calls: a run of its own, whose outcome is recorded in both logs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from durable_core._calls.parameters import Input
from durable_core._log.cancelling import cancellation
from durable_core._log.chain import FLOW, advance, decided, successor
from durable_core._log.news import tell
from durable_core._log.notes import child_of, parent_of
from durable_core._running.driving import Standing
from durable_core._running.looking import Pair, listening
from durable_core._running.pausing import Pause, can_go_on, pause, wait_for_first
from durable_core._running.race import ask_child, ask_wait
from durable_core._running.run import Run, poll_seconds
from durable_core.errors import ChildStopped, RunBusy, RunCancelled, StepDrift
from durable_core.record import StepError, StepRecord
from durable_core.stores.flows import cancelled

_LONGEST_ID: Final = 512


class ChildFlow(Protocol):
    """What a run needs of a flow to have it as a child."""

    name: str

    def take(self, input: Mapping[str, Any]) -> Input:
        """Check input, and return it as it is recorded."""

    async def stand_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> Standing:
        """Drive the run until it ends, waits or stops, and return how it stands. Raises `RunBusy` where another drives it."""

    async def ask_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> StepRecord:
        """Ask for the run, without driving it."""


class Child(msgspec.Struct, frozen=True):
    """A child that is asked for by a step."""

    step_id: str
    flow: ChildFlow
    taken: Input

    def note(self, run: Run) -> dict[str, Any]:
        """Return what the first entry of the step holds: the child's id, its flow, and its input, which is used ever after."""
        return {"run": child_id(run.id, self.step_id), "flow": self.flow.name, **self.taken.note()}


def child_id(run_id: str, step_id: str) -> str:
    """Return the id of the run that a step of a run has as its child; one that gets too long is hashed at its end."""
    plain = f"{run_id}/{step_id}"
    if len(plain.encode()) <= _LONGEST_ID:
        return plain
    digest = blake2b(plain.encode(), digest_size=16).hexdigest()
    return plain.encode()[: _LONGEST_ID - len(digest) - 1].decode(errors="ignore") + "~" + digest


def lineage_of(run: Run, step_id: str, *, driven: bool) -> dict[str, Any]:
    """Return what a child's flow records of where it comes from: its parent, and the topmost run, which drives it."""
    parent = {"run": run.id, "step": step_id}
    flow = run.flow
    root = {} if flow is None else flow.notes.get("root") or {"run": run.id, "flow": flow.name}
    return {"parent": parent, "root": root} if driven and root else {"parent": parent}


async def drive_child(run: Run, child: Child) -> StepRecord:
    """Drive a child until it has an outcome, and return the entry that records it in this run.

    Raises `RunSuspended` while the child waits, `ChildStopped` where it crashed or was parked, `RunCancelled` where this run was
    cancelled and the child with it.
    """
    run.children[child_id(run.id, child.step_id)] = child.flow
    ask_child(run, child.step_id, partial(_lose, run, child))
    record = await _recorded(run, child)
    if decided(record):
        return _heard(run, record)
    while child.step_id in run.running:  # the same call elsewhere
        await run.an_end()
        if decided(newest := run.log.latest(child.step_id)):
            return _heard(run, newest)
    run.running[child.step_id] = asyncio.current_task()
    try:
        outcome = await _outcome(run, child, record)
    finally:
        run.end_step(child.step_id)
    return _heard(run, outcome)


def _heard(run: Run, outcome: StepRecord) -> StepRecord:
    """Return a child's outcome, unless it was cancelled because this run was: then the flow is told, on a replay too."""
    if outcome.notes.get("told"):
        run.check()
    run.tell_again(outcome.step_id)
    return outcome


async def _outcome(run: Run, child: Child, record: StepRecord) -> StepRecord:
    """Drive a child, and wait with it, until it has ended; record its outcome in this run, too."""
    run_id, input = str(record.notes["run"]), record.notes.get("input") or {}
    lineage = lineage_of(run, child.step_id, driven=True)
    limit = None if run.wait_limit is None else run.clock.monotonic() + run.wait_limit
    while True:
        await run.begin(undoes=True)  # a cancellation is handed on first
        if run.log.cancelled is not None and not await _cancel(run, run_id):
            return await _end(run, record, await _flow_of(run, run_id))
        standing = await _stand(run, child, run_id, input, lineage)
        if standing is not None:
            state = standing.record
            if decided(state):
                return await _end(run, record, state)
            if standing.error is not None and (state.status == "reopened" or "parked" in state.notes):
                raise ChildStopped(state, standing.error)
        if run.log.cancelled is not None:  # the child was told, or will be when the loop comes round
            await run.clock.sleep(min(1.0, poll_seconds(run.store)) if standing is None else 0)
            continue
        if standing is None:  # whoever drives it may leave it waiting
            until: datetime | None = run.clock.now() + timedelta(seconds=poll_seconds(run.store))
        else:
            until = standing.record.until
        await _wait_for(run, child.step_id, _pairs(run_id, standing), until, limit)


async def _stand(run: Run, child: Child, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> Standing | None:
    """Drive the child as far as it goes now; None where another drives it. A cancellation of this run is handed on to it."""
    watcher = asyncio.create_task(_hand_on_cancellation(run, run_id))
    try:
        return await child.flow.stand_as_child(run, run_id, input, lineage)
    except RunBusy:
        return None
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
        if not watcher.cancelled():
            watcher.exception()  # which this run meets itself when it looks for its cancellation


async def _lose(run: Run, child: Child) -> None:
    """Cancel a child because another contender of a race had won, drive it to its end, and record that in this run."""
    record = run.log.latest(child.step_id)
    if record is None or decided(record):
        return
    run_id, reason = str(record.notes["run"]), f"another contender was first in run {run.id!r}"
    await _drive_to_its_end(run, run_id, child.flow, lineage_of(run, child.step_id, driven=True), reason, None)
    if (end := await _flow_of(run, run_id)) is not None:
        await _end(run, record, end)


async def ask_for_child(run: Run, child: Child) -> str:
    """Ask for a child that nobody waits for here, and return its run id."""
    run.children[child_id(run.id, child.step_id)] = child.flow  # an earlier life may have asked for it, and recorded nothing here
    latest = run.log.latest(child.step_id)
    note: Mapping[str, Any] = child.note(run) if latest is None else latest.notes
    if latest is not None:
        _check(run, latest, child)
    if decided(latest):
        await run.emit("step:replay", latest)
        return str(note["run"])
    await run.begin()
    await child.flow.ask_as_child(run, note["run"], note["input"], lineage_of(run, child.step_id, driven=False))
    record = _entry(run, child, latest, status="success", result=msgspec.json.encode(note["run"]))
    return str((await run.log.outcome(record, note["run"])).notes["run"])


async def result_of(run: Run, step_id: str, name: str, child: str) -> StepRecord:
    """Wait until a child that nobody waited for has ended, and return the entry that records its outcome in this run."""
    latest = run.log.latest(step_id)
    if latest is not None:
        run.check_kind(latest, "flow")
        if latest.notes.get("run") != child:
            raise StepDrift(
                f"step {step_id!r} of run {run.id!r} was recorded for run {latest.notes.get('run')!r}, not {child!r}; give it"
                " another id",
                step_id=step_id,
            )
        if decided(latest):
            run.tell_again(step_id)
            await run.emit("step:replay", latest)
            return latest
        ask_wait(run, step_id, name, "flow")
    await run.begin()
    ask_wait(run, step_id, name, "flow")
    if latest is None:
        latest = await run.log.claim(run.entry(step_id, None, status="waiting", kind="flow", name=name, note={"run": child}))
        await run.emit("step:wait", latest)
    limit = None if run.wait_limit is None else run.clock.monotonic() + run.wait_limit
    while not decided(end := await run.log.look(FLOW, child)):
        with listening(run, [(child, FLOW)]) as listener:
            listener.must_look = True
            await pause(run, Pause(step_id, listener.pairs, None), listener, limit)
    assert end is not None
    return await _end(run, latest, end)


async def end_children(run: Run) -> None:
    """Cancel the children of a cancelled run that have not ended, and drive those to their end whose flows are known here.

    Raises `ChildStopped` for one that crashed or was parked.
    """
    steps = (run.log.latest(step_id) for step_id in run.log)
    called = [child for step in steps if step is not None and (child := child_of(step)) is not None]
    for run_id in dict.fromkeys((*run.children, *called)):
        if (flow := run.children.get(run_id)) is None:  # an earlier life called for it
            await _cancel(run, run_id)
        else:
            await _drive_to_its_end(run, run_id, flow, {}, *_asked(run))


async def _drive_to_its_end(
    run: Run, run_id: str, flow: ChildFlow, lineage: Mapping[str, Any], reason: str | None, by: str | None
) -> None:
    """Cancel a child, and drive it until it has ended, or wait where another does. Raises `ChildStopped` where it can't go on."""
    while await _ask_to_cancel(run, run_id, reason, by):
        try:
            standing = await flow.stand_as_child(run, run_id, {}, lineage)
        except RunBusy:
            await run.clock.sleep(min(1.0, poll_seconds(run.store)))
            continue
        if standing.error is not None and (standing.record.status == "reopened" or "parked" in standing.record.notes):
            raise ChildStopped(standing.record, standing.error)
        if not decided(standing.record):  # a delay between two attempts to undo
            await run.clock.sleep(min(1.0, poll_seconds(run.store)))


async def _recorded(run: Run, child: Child) -> StepRecord:
    """Return the newest entry of the step, after asking for the child if no run has."""
    latest = run.log.latest(child.step_id)
    if latest is not None:
        _check(run, latest, child)
        if decided(latest):
            await run.emit("step:replay", latest)
        else:
            ask_wait(run, child.step_id, child.step_id, "flow")
        if latest.status != "reopened":
            return latest
    await run.begin()
    ask_wait(run, child.step_id, child.step_id, "flow")
    if latest is None and run.log.answers:
        await run.refuse_unanswered(child.step_id)
    record = await run.log.claim(_entry(run, child, latest, status="waiting"))
    await run.emit("step:wait", record)
    return record


def _entry(run: Run, child: Child, latest: StepRecord | None, **fields: Any) -> StepRecord:
    if latest is not None:
        return successor(latest, run.clock.now(), **fields)
    return run.entry(child.step_id, None, kind="flow", note=child.note(run), fingerprint=child.taken.fingerprint, **fields)


def _check(run: Run, record: StepRecord, child: Child) -> None:
    run.check_kind(record, "flow")
    name = record.notes.get("flow")
    if name != child.flow.name:
        raise StepDrift(
            f"{record.step_id!r} of run {run.id!r} was recorded for flow {name!r}, and is now asked for as"
            f" {child.flow.name!r}; give it another id",
            step_id=record.step_id,
        )
    if record.fingerprint != child.taken.fingerprint:
        run.tell_drift(
            f"flow {record.step_id!r} of run {run.id!r} was recorded with other input than it is now called with; the recorded"
            " input is used. Give it another id to run it anew"
        )


def _pairs(run_id: str, standing: Standing | None) -> list[Pair]:
    """Return what a child waits for; where another drives it, its end."""
    found = [] if standing is None else standing.record.notes.get("waiting_for") or []
    return [(str(run), str(step)) for run, step in found] or [(run_id, FLOW)]


async def _wait_for(run: Run, step_id: str, pairs: Sequence[Pair], until: datetime | None, limit: float | None) -> None:
    """Wait until a child can go on, or the cancellation of this run has to be handed on to it."""
    with listening(run, pairs) as listener, run.delaying(step_id):
        listener.must_look = True  # what came while the child was left
        await listener.look()
        if run.log.cancelled is not None or any(can_go_on(listener.newest(pair), run.clock.now()) for pair in pairs):
            return
        with suppress(RunCancelled):  # which is handed on
            await pause(run, Pause(step_id, pairs, until), listener, limit)


async def _hand_on_cancellation(run: Run, run_id: str) -> None:
    """Cancel a child once its parent is cancelled, for as long as it is driven."""
    while run.log.cancelled is None:
        with listening(run, [(run.id, run.cancelled_by)]) as listener:
            if not run.has_news:  # of before it listened
                await wait_for_first(run, None, listener, None)
            await run.look_for_cancellation()
    while await _flow_of(run, run_id) is None:  # it is about to begin
        await run.clock.sleep(min(0.1, poll_seconds(run.store)))
    await _cancel(run, run_id)


async def _cancel(run: Run, run_id: str) -> bool:
    """Cancel a child of a cancelled run; return whether it has to be driven to its end."""
    return await _ask_to_cancel(run, run_id, *_asked(run))


def _asked(run: Run) -> tuple[str | None, str | None]:
    """Return why a run was cancelled, and by whom."""
    assert run.log.cancelled is not None
    asked = cancelled(run.log.cancelled) or run.log.cancelled.notes
    return asked.get("reason"), asked.get("by")


async def _ask_to_cancel(run: Run, run_id: str, reason: str | None, by: str | None) -> bool:
    """Cancel a child; return whether it has to be driven to its end."""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        return cancellation(latest, run.clock.now(), reason, by)

    newest = await _flow_of(run, run_id)
    if newest is None:
        return False
    newest = await advance(run.log.claim, newest, propose)
    tell(run_id)
    return not decided(newest)


async def _flow_of(run: Run, run_id: str) -> StepRecord | None:
    """Return the newest entry of a child's flow; None where it never began, or the id is that of a run which is none of its."""
    flow = await run.log.look(FLOW, run_id)
    parent = parent_of(flow)
    return flow if parent is not None and parent[0] == run.id else None


async def _end(run: Run, record: StepRecord, end: StepRecord | None) -> StepRecord:
    """Record a child's outcome in this run; one that never began was cancelled with it."""
    now = run.clock.now()
    if end is None:
        assert run.log.cancelled is not None
        outcome = successor(
            record, now, status="failure", error=StepError.from_exception(RunCancelled(run.log.cancelled)), until=None
        )
    else:
        outcome = successor(record, now, status=end.status, result=end.result, error=end.error, until=None)
    if run.log.cancelled is not None and outcome.error is not None and outcome.error.matches(RunCancelled):
        outcome = msgspec.structs.replace(outcome, note={**outcome.notes, "told": True})
    recorded = await run.log.outcome(outcome, None)
    await run.emit_outcome(recorded)
    return recorded
