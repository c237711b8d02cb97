"""A step that is called again until it returns something true."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from durable_core._log.chain import decided
from durable_core._system.ids import new_id
from durable_core.record import StepError, StepRecord

from .call import Call
from .looking import listening
from .pausing import pause
from .run import Run
from .step import Tried, TryOnce, due_entry, try_once


def asking_again(every: float, timeout: float | None) -> TryOnce:
    """Return a way to try a step: in rounds, `every` seconds apart, for at most `timeout` seconds from the first one.

    A pause that is longer than the wait limit is recorded and suspends the run. A shorter one leaves no entry.
    """

    deadline: datetime | None = None

    async def once(run: Run, call: Call, latest: StepRecord | None, number: int, before: StepError | None) -> Tried | StepRecord:
        nonlocal deadline
        recorded = None if latest is None else latest.notes.get("deadline")
        if timeout is not None and deadline is None:  # all attempts share it
            deadline = datetime.fromisoformat(recorded) if isinstance(recorded, str) else None
            deadline = deadline or run.clock.now() + timedelta(seconds=timeout)
        note = {**(call.note or {}), **({} if deadline is None else {"deadline": deadline.isoformat()})}
        while True:
            tried = await try_once(run, call, latest, number, before)
            if isinstance(tried, StepRecord) or tried.value:
                return tried
            now = run.clock.now()
            if deadline is not None and now >= deadline:
                got = repr(tried.value) if tried.error is None else f"raised {tried.error!r}"
                late = TimeoutError(f"it returned nothing true within {timeout:g} s, but {got}")
                late.__cause__ = tried.error
                failure = msgspec.structs.replace(
                    tried.record, status="failure", result=None, error=StepError.from_exception(late)
                )
                return Tried(failure, None, late, tried.cancelled, is_last=True)
            if tried.error is not None:
                return msgspec.structs.replace(tried, record=msgspec.structs.replace(tried.record, note=note or None))
            until = now + timedelta(seconds=every)
            until = until if deadline is None else min(until, deadline)
            if run.wait_limit is not None and every > run.wait_limit:
                waiting = msgspec.structs.replace(
                    tried.record, id=new_id(), status="waiting", result=None, until=until, note=note or None
                )
                latest = await run.log.claim(waiting)
                if not decided(latest):
                    latest = await due_entry(run, call, latest)
            else:
                with listening(run, call.step_id) as listener, run.delaying(call.step_id):
                    await pause(run, listener, until, None, undoes=call.policy.when_cancelled)
                latest = run.log.latest(call.step_id)
            if decided(latest):
                return latest

    return once
