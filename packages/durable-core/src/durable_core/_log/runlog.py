"""A run's log in its runner: read once, then looked up; appends are repeated until the store accepts them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from durable_core._system.waits import Deadline, TimeLimit, time_limit, undisturbed
from durable_core.clock import Clock
from durable_core.errors import CorruptLog, LockLost, ResultNotRecorded, StoreError
from durable_core.options import exponential
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.flows import cancelled, is_crash
from durable_core.stores.lines import heads_of

from .cancelling import in_spite_of
from .chain import CANCEL, FLOW, decided

T = TypeVar("T", StepRecord, StepRecord | None)

_CANCELLED_WITHIN: Final = 5.0
_SHORTEST: Final = 0.05  # seconds between two tries
_append_delay: Final = exponential(_SHORTEST, limit=2)
_logger: Final = logging.getLogger("durable_core")


class RunLog:
    """The newest entry of each step, and the outcomes that could not be appended yet.

    Entries stay in the store's sequence, which may decode them only on access.
    """

    def __init__(self, store: Store, run_id: str, clock: Clock, store_timeout: float) -> None:
        self._store: Final = store
        self._run_id: Final = run_id
        self._clock: Final = clock
        self.timeout: Final = store_timeout
        self._limit: TimeLimit | None = None
        self.kept: Final[dict[str, tuple[StepRecord, Any]]] = {}
        """Outcomes that the store has not accepted yet."""
        self.load(())

    def load(self, entries: Sequence[StepRecord]) -> None:
        """Start with `entries`, the store's current ones."""
        self.entries = entries
        """The loaded entries, in the order in which they were appended."""
        self._newest: dict[str, int | StepRecord] = {}
        """Each step's newest entry: its index among the loaded ones, or the entry itself if it came later."""
        self.reopened: dict[str, int] = {}
        """The revision at which a step was last reopened."""
        self._restarts: dict[str, int] | None = None
        """How often each step was restarted; None until it is needed."""
        self.answers: list[str] = []
        """The steps with which an earlier run answered an exception."""
        self.told_at: set[str] = set()
        """The steps at which an earlier run learned of its cancellation, before it undid something."""
        revisions: dict[str, int] = {}  # only of steps with more than one entry
        for index, record in enumerate(heads_of(entries)):
            step_id, revision = record.step_id, record.revision
            if revision or step_id in self._newest:
                if revision < revisions.get(step_id, 0):
                    continue
                revisions[step_id] = revision
                if record.status == "reopened":
                    self.reopened[step_id] = revision
            self._newest[step_id] = index
            if record.answered and entries[index].answered:
                told_at = entries[index].notes.get("told_at")
                if isinstance(told_at, list):
                    self.told_at.update(map(str, told_at))
                else:
                    self.answers.append(step_id)
        flow = self.latest(FLOW)
        self.cancelled = flow if cancelled(flow) is not None else self.latest(CANCEL)
        """The entry that asks the run to stop."""

    def __len__(self) -> int:
        """Return the number of steps that have an entry."""
        return len(self._newest)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of the steps that have an entry."""
        return iter([*self._newest])

    def forget(self) -> None:
        """Start again, after the run was cleared."""
        self.kept.clear()
        self.load(())

    def latest(self, step_id: str) -> StepRecord | None:
        """Return the step's entry with the highest revision."""
        newest = self._newest.get(step_id)
        return self.entries[newest] if type(newest) is int else newest  # type: ignore[return-value]  # mypy narrows no else here

    def attempts(self, latest: StepRecord) -> tuple[int, int]:
        """Return the number of a step's last attempt and how many attempts raised, since it was last reopened."""
        if latest.status not in ("started", "waiting"):
            return 0, 0
        if latest.status == "waiting" and latest.error is None:  # a round of `until`, which is not an attempt
            return latest.attempt - 1, latest.attempt - 1
        if self._restarts is None:
            self._restarts = self._count_restarts()
        restarts = self._restarts.get(latest.step_id, 0)
        return latest.attempt, latest.attempt - restarts - (latest.status == "started")

    def _count_restarts(self) -> dict[str, int]:
        """Count each step's intents that follow an intent and have no error: restarts after an unknown outcome."""
        restarts: dict[str, int] = {}
        before: dict[str, str] = {}
        for record in self.entries:
            step_id, status = record.step_id, record.status
            if status == "reopened":
                restarts.pop(step_id, None)
            elif status == "started" and record.error is None and before.get(step_id) == "started":
                restarts[step_id] = restarts.get(step_id, 0) + 1
            before[step_id] = status
        return restarts

    def crashes(self) -> int:
        """Return how often the flow's own code raised since the last outcome of a step."""
        if any(isinstance(record, StepRecord) and record.step_id != FLOW and decided(record) for record in self._newest.values()):
            return 0
        number = 0
        for record in reversed(self.entries):
            if record.step_id == FLOW:
                number += is_crash(record)
            elif decided(record):
                break
        return number

    def add(self, record: StepRecord) -> StepRecord:
        """Add an entry that the store holds."""
        known = self.latest(record.step_id)
        if known is None or known.revision <= record.revision:
            self._newest[record.step_id] = record
            if record.status == "reopened":
                self.reopened[record.step_id] = record.revision
            if record.step_id == CANCEL or (record.step_id == FLOW and cancelled(record) is not None):
                self.cancelled = record
        return record

    async def claim(self, record: StepRecord) -> StepRecord:
        """Append `record` and return the slot's holder. Raises `StoreError` if the store is unreachable."""
        return await self._answer(partial(self._store.append, record), "append", record.step_id)

    async def look(self, step_id: str, run_id: str = "") -> StepRecord | None:
        """Read the step's newest entry from the store; another process may have appended it. Raises what `claim` raises.

        `run_id` reads a step of another run.
        """
        return await self._answer(partial(self._store.get, run_id or self._run_id, step_id), "look for", step_id)

    async def outcome(self, record: StepRecord, value: Any, cancelled: asyncio.CancelledError | None = None) -> StepRecord:
        """Record an outcome and return the valid one: this one, or another that came first.

        If the caller is cancelled, or was `cancelled` before, recording completes first, within 5 s. If the store doesn't accept
        the outcome, it is kept for the next step, and `ResultNotRecorded` is raised.
        """
        try:
            if cancelled is not None:
                raise cancelled
            return await self._settle(record, self.timeout)
        except asyncio.CancelledError:
            await self.outcome_if_possible(record, value)
            raise
        except LockLost:
            raise
        except Exception as failure:
            self.kept[record.step_id] = record, value
            raise ResultNotRecorded(record, value) from failure

    async def outcome_if_possible(self, record: StepRecord, value: Any = None) -> None:
        """Record an outcome within 5 s, despite cancellations; keep it for the next step if the store is unreachable."""
        try:
            try:
                await undisturbed(self._settle(record, _CANCELLED_WITHIN))
            except asyncio.CancelledError:  # a loop that shuts down cancels that task too, but doesn't know a new one
                await undisturbed(self._settle(record, _CANCELLED_WITHIN))
        except (Exception, asyncio.CancelledError) as error:
            self.kept[record.step_id] = record, value
            _logger.error("%s", ResultNotRecorded(record, value), exc_info=error)

    async def settle(self) -> None:
        """Append the kept outcomes. Raises `ResultNotRecorded` if the store is still unreachable."""
        for record, value in [*self.kept.values()]:
            await self.outcome(record, value)

    async def settle_if_possible(self) -> None:
        """Append the kept outcomes if the store is back. Otherwise these steps would run again in another process."""
        kept, within = [*self.kept.values()], min(self.timeout, _CANCELLED_WITHIN)
        # All at the same time, so that one that is refused, or a store that hangs, doesn't delay the others.
        outcomes = await asyncio.gather(*(self._settle(record, within) for record, _ in kept), return_exceptions=True)
        for (record, value), outcome in zip(kept, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _logger.error("%s", ResultNotRecorded(record, value), exc_info=outcome)

    async def _settle(self, record: StepRecord, within: float) -> StepRecord:
        """Append an outcome. Its effect has happened, so it moves to the next revision until it or another outcome has a slot."""
        holder = await self._persistently(partial(self._store.append, record), within, "append", record.step_id)
        while not decided(holder):
            if record.step_id == FLOW:
                record = in_spite_of(holder, record)
            record = msgspec.structs.replace(record, revision=holder.revision + 1)
            holder = await self._persistently(partial(self._store.append, record), within, "append", record.step_id)
        self.kept.pop(record.step_id, None)
        return holder

    async def _answer(self, ask: Callable[[], Awaitable[T]], verb: str, step_id: str) -> T:
        """Call the store. Any error becomes a `StoreError`, so that it isn't taken for an error of the flow."""
        try:
            return await self._persistently(ask, self.timeout, verb, step_id)
        except StoreError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise StoreError(f"the store could not {verb} step {step_id!r} of run {self._run_id!r}: {problem}") from error

    async def _persistently(self, ask: Callable[[], Awaitable[T]], within: float, verb: str, step_id: str) -> T:
        """Call the store until it answers, for at most so many seconds, and add the entry; raise its last error.

        Appending again is harmless: the same record has the same id, whether it was written before or not.
        """
        task = asyncio.current_task()
        assert task is not None
        began, remaining = self._clock.monotonic(), within
        reason: Exception | None = None
        tries = 0
        while True:
            if self._limit is None or self._limit.loop is not task.get_loop():
                self._limit = time_limit()
            deadline = self._limit.start(task, remaining)
            try:
                answer = await ask()
            except BaseException as error:
                failure = _failure(error, deadline, remaining, alone=self._limit.stop(deadline))
            else:
                self._limit.stop(deadline)
                if answer is not None and answer.run_id == self._run_id:
                    self.add(answer)
                return answer
            tries += 1
            remaining = began + within - self._clock.monotonic()
            pause = min(_append_delay(tries), remaining / 2)  # so that the last attempt comes near the end
            remaining -= pause
            if pause < _SHORTEST:
                if reason is not None and isinstance(failure, TimeoutError):
                    raise reason from failure  # the store's earlier error says more
                raise failure
            reason = failure
            _logger.warning("could not %s step %r of run %r, trying again: %r", verb, step_id, self._run_id, failure)
            await self._clock.sleep(pause)


def _failure(error: BaseException, deadline: Deadline, within: float, *, alone: bool) -> Exception:
    """Return an error after which the store may be called again; raise any other, such as the run's own cancellation."""
    if isinstance(error, asyncio.CancelledError) and alone:
        failure: Exception = StoreError("the store gave it up, though nobody cancelled it")
        if deadline.expired:
            failure = TimeoutError(f"no answer within {within:g} s")
        failure.__cause__ = error
        return failure
    if not isinstance(error, Exception) or isinstance(error, CorruptLog):
        raise error
    return error
