"""Transactions: a step's own writes and its record commit together, so that it happens exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from inspect import isawaitable, iscoroutine
from typing import Any, Final

from durable_core._log.chain import decided
from durable_core._system.faces import in_stores_thread
from durable_core._system.waits import finished
from durable_core.errors import StepInterrupted, StoreError
from durable_core.options import exponential
from durable_core.record import StepError, StepRecord
from durable_core.store import SupportsTransact, SupportsTransaction

from .attempt import Caller, Outcome, attempt, called
from .call import Call, check, may_change_its_variables
from .race import in_thread
from .run import Run
from .step import Tried, TryOnce, tried_of, try_fn

NOT_AWAITED: Final = "but this store has one writer, and an await would block all others: make it a plain function"

_rollback_delay: Final = exponential(0.02, limit=1, jitter=True)


class _RolledBack(Exception):
    """Leaves the transaction, so that nothing is committed."""

    def __init__(self, result: Tried | StepRecord) -> None:
        self.result = result


def committing_in(store: SupportsTransaction) -> TryOnce:
    """Return a way to try a step once: `fn(connection, *args)` in a transaction that also contains the record."""

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
                # It was not committed but may be repeated, or its answer was lost. Look, then repeat the transaction.
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
            deadline = deadline or now + run.log.timeout  # the time of the function itself doesn't count
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
    """Run one transaction. Its writes are committed only with its own record of a success."""
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


def committing_in_thread(store: SupportsTransact) -> TryOnce:
    """Return a way to try a step once: `fn(connection, *args)` and the record in one commit, in the store's thread."""

    async def once(run: Run, call: Call, latest: StepRecord | None, number: int, _before: StepError | None) -> Tried | StepRecord:
        while not decided(latest):
            if latest is not None and latest.status == "started":
                raise StepInterrupted(latest)
            await run.poll()
            thread = _StoreThread(store, latest, number)
            outcome = await attempt(run, call, number, call.fn, call.args, thread=thread)
            made, holder = thread.made, thread.holder
            if made.error is not None:
                return made
            latest = run.log.add(made.record if holder is None else holder)
            if outcome.cancelled is not None:
                raise outcome.cancelled
            if latest is made.record:
                made.is_recorded = True
                return made
            may_change_its_variables(call)
        return latest

    return once


class _StoreThread(Caller):
    """A store's thread, which has the connection, and where the record is made before the commit."""

    made: Tried
    """The result of the function."""
    holder: StepRecord | None
    """The record that holds the slot, if the function succeeded."""

    def __init__(self, store: SupportsTransact, latest: StepRecord | None, number: int) -> None:
        self._store: Final = store
        self._latest: Final = latest
        self._number: Final = number

    async def call(self, run: Run, call: Call, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        context = copy_context()
        context.run(in_stores_thread.set, True)

        def work(connection: Any) -> StepRecord | None:
            started_at, began = run.clock.now(), run.clock.monotonic()
            outcome = context.run(called, run, call, fn, (connection, *args))
            if isawaitable(outcome.value):
                if iscoroutine(outcome.value):
                    outcome.value.close()
                raise TypeError(f"fn of transaction {call.step_id!r} returned an awaitable, {NOT_AWAITED}")
            self.made = tried_of(run, call, self._latest, self._number, outcome, started_at, run.clock.monotonic() - began)
            return self.made.record if self.made.error is None else None

        future = asyncio.ensure_future(self._store.transact(work))
        with in_thread():
            cancelled = await finished(future)
        self.holder = future.result()
        self.made.cancelled = cancelled
        return Outcome(cancelled=cancelled)


def _given_up(run: Run, call: Call, tries: int, error: BaseException) -> BaseException:
    if isinstance(error, StoreError):
        return error
    given_up = StoreError(
        f"transaction {call.step_id!r} of run {run.id!r} was rolled back {tries} times, for {run.log.timeout:g} seconds, and"
        f" nothing was recorded; run it again: {error}"
    )
    given_up.__cause__ = error
    return given_up
