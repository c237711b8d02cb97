"""A step whose own writes and whose record commit together, so that it happens exactly once."""

from __future__ import annotations

from itertools import count
from typing import Final

from durable_core._log.chain import decided
from durable_core.errors import StepInterrupted, StoreError
from durable_core.options import exponential
from durable_core.record import StepRecord
from durable_core.store import SupportsTransaction

from .call import Call, check_closure
from .run import Run
from .step import Tried, TryOnce, tried_by

_pause: Final = exponential(0.02, limit=1, jitter=True)


class _RolledBack(Exception):
    """Leaves the transaction, so that nothing of it is committed."""

    def __init__(self, result: Tried | StepRecord) -> None:
        self.result = result


def committing_in(store: SupportsTransaction) -> TryOnce:
    """Return a way to try a step once: `fn(connection, *args)` in a transaction that also holds the record."""

    async def once(run: Run, call: Call, latest: StepRecord | None, number: int) -> Tried | StepRecord:
        deadline = 0.0
        for tries in count(1):
            if latest is not None and latest.status == "started":
                raise StepInterrupted(latest)
            await run.begin()
            if number == tries == 1:
                check_closure(run, call)
            try:
                tried = await _transact(store, run, call, latest, number)
            except Exception as failure:
                # Neither committed nor refused for good, or committed with its answer lost: look, then do all of it again.
                if not store.is_retryable(failure):
                    raise
                retried: BaseException = failure
            else:
                if isinstance(tried, StepRecord):
                    latest = run.log.add(tried)
                    if decided(latest):
                        return latest
                    continue
                if tried.error is None or not store.is_retryable(tried.error):
                    return tried
                retried = tried.error
            now = run.clock.monotonic()
            deadline = deadline or now + run.log.timeout  # the time that the function itself takes does not count
            if now >= deadline:
                raise _given_up(run, call, tries, retried)
            await run.clock.sleep(_pause(tries))
            latest = await run.look(call.step_id)
            if decided(latest):
                return latest
        raise AssertionError("counting ended")

    return once


async def _transact(
    store: SupportsTransaction, run: Run, call: Call, latest: StepRecord | None, number: int
) -> Tried | StepRecord:
    """Run one transaction; what it wrote is committed only with its own record of a success."""
    try:
        async with store.transaction() as transaction:
            tried = await tried_by(run, call, latest, number, (transaction.connection, *call.args), run.check)
            if tried.error is not None:
                raise _RolledBack(tried)
            holder = await transaction.append(tried.record)
            if holder.id != tried.record.id:
                raise _RolledBack(holder)
    except _RolledBack as rolled_back:
        return rolled_back.result
    run.log.add(tried.record)
    return tried._replace(recorded=True)


def _given_up(run: Run, call: Call, tries: int, error: BaseException) -> BaseException:
    if isinstance(error, StoreError):
        return error
    given_up = StoreError(
        f"transaction {call.step_id!r} of run {run.id!r} was rolled back {tries} times, for {run.log.timeout:g} seconds, and"
        f" nothing was recorded; run it again: {error}"
    )
    given_up.__cause__ = error
    return given_up
