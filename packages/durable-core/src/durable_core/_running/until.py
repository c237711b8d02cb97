"""A step that is asked again until it returns something true."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from durable_core._log.chain import decided
from durable_core._system.ids import new_id
from durable_core.record import StepError, StepRecord

from .call import Call
from .looking import listening
from .pausing import Pause, pause
from .run import Run
from .step import Tried, TryOnce, due_entry, try_once


def asking_again(every: float, timeout: float | None) -> TryOnce:
    """Return a way to try a step: in rounds, `every` so many seconds, for at most `timeout` seconds from the first one.

    A round that is longer than the wait limit is recorded, and suspends the run; a shorter one leaves no entry.
    """

    async def once(run: Run, call: Call, latest: StepRecord | None, number: int, before: StepError | None) -> Tried | StepRecord:
        recorded = None if latest is None else latest.notes.get("deadline")
        deadline: datetime | None = None
        if timeout is not None:
            deadline = run.clock.now() + timedelta(seconds=timeout)
            if isinstance(recorded, str):
                deadline = datetime.fromisoformat(recorded)
        while True:
            tried = await try_once(run, call, latest, number, before)
            if isinstance(tried, StepRecord) or tried.error is not None or tried.value:
                return tried
            now = run.clock.now()
            if deadline is not None and now >= deadline:
                late = TimeoutError(f"it returned nothing true within {timeout:g} s, but {tried.value!r}")
                failure = msgspec.structs.replace(
                    tried.record, status="failure", result=None, error=StepError.from_exception(late)
                )
                return Tried(failure, None, late, None)
            until = now + timedelta(seconds=every)
            until = until if deadline is None else min(until, deadline)
            if run.wait_limit is not None and every > run.wait_limit:
                note = {**(call.note or {}), **({} if deadline is None else {"deadline": deadline.isoformat()})}
                waiting = msgspec.structs.replace(
                    tried.record, id=new_id(), status="waiting", result=None, until=until, note=note or None
                )
                latest = await run.log.claim(waiting)
                if not decided(latest):
                    latest = await due_entry(run, call, latest)
            else:
                pair = (run.id, call.step_id)
                with listening(run, [pair]) as listener, run.delaying(call.step_id):
                    waits = Pause(call.step_id, [pair], until)
                    await pause(run, waits, listener, None, undoes=call.policy.when_cancelled)
                latest = run.log.latest(call.step_id)
            if decided(latest):
                return latest

    return once
