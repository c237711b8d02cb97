"""A step whose own writes and whose record commit together, so that it happens exactly once."""

from __future__ import annotations

from typing import Final

from durable_core._log.chain import decided
from durable_core.errors import StepInterrupted, StoreError
from durable_core.options import exponential
from durable_core.record import StepError, StepRecord
from durable_core.store import SupportsTransaction

from .call import Call, check, may_change_its_variables
from .run import Run
from .step import Tried, TryOnce, try_fn

_rollback_delay: Final = exponential(0.02, limit=1, jitter=True)


class _RolledBack(Exception):
    """Leaves the transaction, so that nothing of it is committed."""

    def __init__(self, result: Tried | StepRecord) -> None:
        self.result = result


def committing_in(store: SupportsTransaction) -> TryOnce:
    """Return a way to try a step once: `fn(connection, *args)` in a transaction that also holds the record."""

    async def once(run: Run, call: Call, latest: StepRecord | None, number: int, _before: StepError | None) -> Tried | StepRecord:
        deadline, tries = 0.0, 0
        while not decided(latest):
            if latest is not None and latest.status == "started":
                raise StepInterrupted(latest)
            await run.poll()
            check(run, call)
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
                    continue
                if tried.error is None or not store.is_retryable(tried.error):
                    return tried
                retried = tried.error
            tries += 1
            now = run.clock.monotonic()
            deadline = deadline or now + run.log.timeout  # the time that the function itself takes does not count
            if now >= deadline:
                raise _given_up(run, call, tries, retried)
            await run.clock.sleep(_rollback_delay(tries))
            latest = await run.log.look(call.step_id)
            may_change_its_variables(call)
        return latest

    return once


async def _transact(
    store: SupportsTransaction, run: Run, call: Call, latest: StepRecord | None, number: int
) -> Tried | StepRecord:
    """Run one transaction; what it wrote is committed only with its own record of a success."""
    try:
        async with store.transaction() as transaction:
            check(run, call)
            tried = await try_fn(run, call, latest, number, (transaction.connection, *call.args))
            if tried.error is not None:
                raise _RolledBack(tried)
            holder = await transaction.append(tried.record)
            if holder.id != tried.record.id:
                raise _RolledBack(holder)
    except _RolledBack as rolled_back:
        return rolled_back.result
    run.log.add(tried.record)
    tried.is_recorded = True
    return tried


def _given_up(run: Run, call: Call, tries: int, error: BaseException) -> BaseException:
    if isinstance(error, StoreError):
        return error
    given_up = StoreError(
        f"transaction {call.step_id!r} of run {run.id!r} was rolled back {tries} times, for {run.log.timeout:g} seconds, and"
        f" nothing was recorded; run it again: {error}"
    )
    given_up.__cause__ = error
    return given_up
