"""Children: a flow that a flow calls, as a run of its own, whose outcome is recorded in both logs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from random import uniform
from typing import Any, Final, Protocol

import msgspec

from durable_core._calls.parameters import Input
from durable_core._log.cancelling import cancellation
from durable_core._log.chain import FLOW, advance, decided, successor
from durable_core._log.news import tell
from durable_core._log.notes import child_of, parent_of, waits_of
from durable_core._log.wakeups import wake
from durable_core._running.call import use_id
from durable_core._running.driving import Standing
from durable_core._running.looking import listening
from durable_core._running.outcome import value_or_failure
from durable_core._running.pausing import can_go_on, pause, wait_for_first
from durable_core._running.race import Wait
from durable_core._running.run import Run, poll_seconds
from durable_core._system.faces import asynchronous
from durable_core._system.ids import check_own_id
from durable_core._values.codec import Codec
from durable_core.errors import ChildStopped, RunBusy, RunCancelled, StepDrift
from durable_core.record import StepError, StepRecord
from durable_core.stores.flows import cancelled, is_crash, is_parked

from .wait import ask

_LONGEST_ID: Final = 512


class ChildFlow(Protocol):
    """What a run needs from a flow to call it as a child."""

    name: str
    _codec: Codec[Any]

    def _take(self, input: Mapping[str, Any]) -> Input:
        """Check input, and return it as it is recorded."""

    async def _stand_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> Standing:
        """Drive the run until it ends, waits or stops, and return its state. Raises `RunBusy` if another runner drives it."""

    async def _ask_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> StepRecord:
        """Start the run without driving it."""


class Child(msgspec.Struct, frozen=True):
    """A child that a step calls."""

    step_id: str
    flow: ChildFlow
    taken: Input

    def note(self, run: Run) -> dict[str, Any]:
        """Return the note of the step's first entry: the child's id, its flow, and its input, which every repetition uses."""
        return {"run": child_id(run.id, self.step_id), "flow": self.flow.name, **self.taken.note()}


def child_id(run_id: str, step_id: str) -> str:
    """Return the run id of a step's child. The end of an id that would be too long is hashed."""
    plain = f"{run_id}/{step_id}"
    if len(plain.encode()) <= _LONGEST_ID:
        return plain
    digest = blake2b(plain.encode(), digest_size=16).hexdigest()
    return plain.encode()[: _LONGEST_ID - len(digest) - 1].decode(errors="ignore") + "~" + digest


def lineage_of(run: Run, step_id: str, *, driven: bool) -> dict[str, Any]:
    """Return what a child's `$flow` records about its origin: its parent, and the topmost run, which drives it."""
    parent = {"run": run.id, "step": step_id}
    flow = run.flow
    root = {} if flow is None else flow.notes.get("root") or {"run": run.id, "flow": flow.name}
    return {"parent": parent, "root": root} if driven and root else {"parent": parent}


async def call_child(run: Run, step_id: str, flow: Any, input: Mapping[str, Any], *, waits: bool) -> Any:
    """Call a flow as a child: return its value if this `waits` for it, and otherwise its run id at once."""
    flow = asynchronous(flow)
    if not hasattr(flow, "_stand_as_child"):
        raise TypeError(f"flow {step_id!r} must be a function decorated with @flow, not {flow!r}")
    child = Child(step_id, flow, flow._take(input))
    use_id(run, step_id, ("flow", flow.name, child.taken.fingerprint, waits))
    await run.ready()
    run.children[child_id(run.id, step_id)] = flow  # an earlier process may have started it, and recorded nothing here
    if not waits:
        run_id = await _ask_for(run, child)
        run.asked.add(run_id)
        return run_id
    with run.telling(step_id):
        return value_or_failure(await _driven(run, child), flow._codec)


async def result_of(run: Run, step_id: str, name: str, child: str, codec: Codec[Any] | None) -> Any:
    """Wait until a child that was started without waiting has ended, and return its value; None without a codec."""
    step_id = check_own_id("step_id", step_id)
    if child not in run.asked:
        raise ValueError(f"result {step_id!r} needs a run id that flow(…, wait=False) returned in this run, not {child!r}")
    use_id(run, step_id, ("result", child))
    await run.ready()
    with run.telling(step_id):
        record = await ask(run, Wait(step_id, name, "flow", None, {"run": child}), partial(_check_result, run, child))
        limit = run.end_of_waiting()
        while not decided(record):
            end = await run.arriving(run.log.look(FLOW, child))
            if end is None:
                raise StepDrift(
                    f"step {step_id!r} of run {run.id!r} waits for run {child!r}, which no longer exists: it was cleared."
                    " To start it again, fork the run before the step that started it"
                )
            if decided(end):
                record = await run.arriving(_end(run, record, end))
            else:
                with listening(run, step_id, [(child, FLOW)]) as listener:
                    listener.must_look = True
                    await pause(run, listener, None, limit)
    return value_or_failure(record, codec)


async def end_children(run: Run) -> None:
    """Cancel the children of a cancelled run that have not ended, and drive those whose flows are known here to their end.

    Raises `ChildStopped` for one that crashed or was parked.
    """
    steps = (run.log.latest(step_id) for step_id in run.log)
    called = [child for step in steps if step is not None and (child := child_of(step)) is not None]
    for run_id in dict.fromkeys((*run.children, *called)):
        if (flow := run.children.get(run_id)) is None:  # an earlier process called it, and others drive it
            if (newest := await _cancel(run, run_id, _asked(run))) is not None:
                await wake(run.store, newest, run.clock.now())
        else:
            await _end_by_cancelling(run, run_id, flow, _asked(run))


async def _driven(run: Run, child: Child) -> StepRecord:
    """Drive a child until it has an outcome, and return the entry that records it in this run.

    Raises `RunSuspended` while the child waits, `ChildStopped` if it crashed or was parked, and `RunCancelled` if this run was
    cancelled, and with it the child.
    """
    latest = run.log.latest(child.step_id)
    note, fingerprint = child.note(run), child.taken.fingerprint
    if latest is not None:  # what was recorded is used ever after
        note, fingerprint = dict(latest.notes), latest.fingerprint
    asked = Wait(child.step_id, child.step_id, "flow", None, note, fingerprint, end=partial(_lose, run, child))
    record = await ask(run, asked, partial(_check, run, child))
    while not decided(record) and child.step_id in run.running:  # the same call elsewhere
        await run.an_end()
        record = run.log.latest(child.step_id) or record
    if decided(record):
        return _heard(run, record)
    run.running[child.step_id] = asyncio.current_task()
    try:
        outcome = await _outcome(run, child, record)
    finally:
        run.end_step(child.step_id)
    return _heard(run, outcome)


def _heard(run: Run, outcome: StepRecord) -> StepRecord:
    """Return a child's outcome. If it was cancelled because this run was, raise `RunCancelled`, on a replay too."""
    if outcome.notes.get("told"):
        run.check()
    run.tell_again(outcome.step_id)
    return outcome


async def _outcome(run: Run, child: Child, record: StepRecord) -> StepRecord:
    """Drive a child, and wait with it, until it has ended; record its outcome in this run too."""
    run_id, input, limit = str(record.notes["run"]), record.notes.get("input") or {}, run.end_of_waiting()
    while True:
        await run.begin(undoes=True)  # a cancellation is handed on first
        if run.log.cancelled is not None:
            return await _end(run, record, await _end_by_cancelling(run, run_id, child.flow, _asked(run)))
        standing = await _stand(run, run_id, child.flow, input, lineage_of(run, child.step_id, driven=True))
        if standing is not None and decided(standing.record):
            return await _end(run, record, standing.record)
        if run.log.cancelled is None:
            await _wait_for(run, child.step_id, run_id, standing, limit)


async def _stand(run: Run, run_id: str, flow: ChildFlow, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> Standing | None:
    """Drive the child as far as it can go now; return None if another runner drives it. Cancelling this run cancels it too.

    Raises `ChildStopped` where it crashed or is parked.
    """
    watcher = asyncio.create_task(_hand_on_cancellation(run, run_id))
    try:
        standing = await flow._stand_as_child(run, run_id, input, lineage)
    except RunBusy:
        return None
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
        if not watcher.cancelled():
            watcher.exception()  # this run meets that itself when it looks for its cancellation
    state = standing.record
    if standing.error is not None and (is_crash(state) or is_parked(state)):
        raise ChildStopped(state, standing.error)
    return standing


async def _lose(run: Run, child: Child) -> None:
    """Cancel a child because another contender won the race, drive it to its end, and record that in this run."""
    record = run.log.latest(child.step_id)
    if record is not None and not decided(record):
        asked = {"reason": f"another contender was first in run {run.id!r}"}
        end = await _end_by_cancelling(run, str(record.notes["run"]), child.flow, asked)
        if end is not None:
            await _end(run, record, end)


async def _ask_for(run: Run, child: Child) -> str:
    """Start a child without waiting for it, and return its run id."""
    latest = run.log.latest(child.step_id)
    note: Mapping[str, Any] = child.note(run) if latest is None else latest.notes
    if latest is not None:
        _check(run, child, latest)
        if decided(latest):
            await run.emit("step:replay", latest)
            return str(note["run"])
    await run.begin()
    await child.flow._ask_as_child(run, note["run"], note["input"], lineage_of(run, child.step_id, driven=False))
    fields: dict[str, Any] = {"status": "success", "result": msgspec.json.encode(note["run"])}
    if latest is None:
        asked = run.entry(child.step_id, None, kind="flow", note=note, fingerprint=child.taken.fingerprint, **fields)
    else:  # what was recorded is used ever after
        asked = successor(latest, run.clock.now(), **fields)
    return str((await run.log.outcome(asked, note["run"])).notes["run"])


def _check(run: Run, child: Child, record: StepRecord) -> None:
    run.check_kind(record, "flow")
    name = record.notes.get("flow")
    if name != child.flow.name:
        raise StepDrift(
            f"step {record.step_id!r} of run {run.id!r} was recorded for flow {name!r}, not {child.flow.name!r}; give it"
            " another id",
            step_id=record.step_id,
        )
    if record.fingerprint != child.taken.fingerprint:
        run.tell_drift(
            f"flow {record.step_id!r} of run {run.id!r} was recorded with other input than it is now called with; the recorded"
            " input is used. To run it again, give it another id",
            record.step_id,
        )


def _check_result(run: Run, child: str, record: StepRecord) -> None:
    run.check_kind(record, "flow")
    if (other := record.notes.get("run")) != child:
        raise StepDrift(
            f"step {record.step_id!r} of run {run.id!r} was recorded for run {other!r}, not {child!r}; give it another id",
            step_id=record.step_id,
        )


async def _wait_for(run: Run, step_id: str, run_id: str, standing: Standing | None, limit: float | None) -> None:
    """Wait until a child can continue, or this run is cancelled and must cancel the child."""
    state = None if standing is None else standing.record
    pairs = waits_of(state) or [(run_id, FLOW)]
    # A runner that drives it elsewhere may leave it waiting. Two runs that each hold the place that the other one's child needs
    # would look again at the same time for ever, were it not for chance.
    patience = timedelta(seconds=uniform(0.5, 1) * poll_seconds(run.store))
    until = run.clock.now() + patience if state is None else state.until
    if run.driver.hands_back():  # the child was suspended for that, and so is this run
        limit = run.clock.monotonic()
    with listening(run, step_id, pairs) as listener:
        await listener.look()  # what came while the child was left
        if run.log.cancelled is not None or any(can_go_on(listener.newest(pair), run.clock.now()) for pair in pairs):
            return
        with suppress(RunCancelled), run.delaying(step_id):  # a cancellation is handed on
            await pause(run, listener, until, limit)


async def _hand_on_cancellation(run: Run, run_id: str) -> None:
    """While a child is driven, cancel it when its parent is cancelled."""
    while run.log.cancelled is None:
        with listening(run, run.cancelled_by) as listener:
            if not run.has_news:  # of before it listened
                await wait_for_first(run, None, listener, None)
            await run.look_for_cancellation()
    while await _flow_of(run, run_id) is None:  # it is about to begin
        await run.clock.sleep(min(0.1, poll_seconds(run.store)))
    await _cancel(run, run_id, _asked(run))


def _asked(run: Run) -> Mapping[str, Any]:
    """Return who cancelled the run, and why."""
    return cancelled(run.log.cancelled) or (run.log.cancelled.notes if run.log.cancelled else {})


async def _end_by_cancelling(run: Run, run_id: str, flow: ChildFlow, asked: Mapping[str, Any]) -> StepRecord | None:
    """Cancel a child, drive it to its end, and return its last `$flow` entry; None if it never began.

    Raises `ChildStopped` where it crashed or is parked.
    """
    while not decided(end := await _cancel(run, run_id, asked)) and end is not None:
        run.lock.check()  # or this runner would keep waiting for a run that another now drives
        standing = await _stand(run, run_id, flow, {}, {})
        if standing is None or not decided(standing.record):  # another runner drives it, or it waits between two attempts to undo
            await run.clock.sleep(min(1.0, poll_seconds(run.store)))
    return end


async def _cancel(run: Run, run_id: str, asked: Mapping[str, Any]) -> StepRecord | None:
    """Cancel a child unless it has ended, and return the newest entry of its flow; None if it isn't a child of this run."""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        return cancellation(latest, run.clock.now(), asked.get("reason"), asked.get("by"))

    newest = await _flow_of(run, run_id)
    if newest is None:
        return None
    newest = await advance(run.log.claim, newest, propose)
    tell(run_id)
    return newest


async def _flow_of(run: Run, run_id: str) -> StepRecord | None:
    """Return the newest entry of a child's flow; None if it never began, or if the run with this id isn't its child."""
    flow = await run.log.look(FLOW, run_id)
    parent = parent_of(flow)
    return flow if parent is not None and parent[0] == run.id else None


async def _end(run: Run, record: StepRecord, end: StepRecord | None) -> StepRecord:
    """Record a child's outcome in this run. A child that never began was cancelled with it."""
    fields: dict[str, Any] = {"status": "failure", "until": None}
    if end is not None:
        fields |= {"status": end.status, "result": end.result, "error": end.error}
    elif run.log.cancelled is not None:
        fields["error"] = StepError.from_exception(RunCancelled(run.log.cancelled))
    error = fields.get("error")
    if run.log.cancelled is not None and error is not None and error.matches(RunCancelled):
        fields["note"] = {**record.notes, "told": True}
    recorded = await run.log.outcome(successor(record, run.clock.now(), **fields), None)
    await run.emit_outcome(recorded)
    return recorded
