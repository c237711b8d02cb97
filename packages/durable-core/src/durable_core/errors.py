"""Every exception of the library, in one tree under `DurableError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._system.roots import CorruptLog as CorruptLog
from ._system.roots import DurableError as DurableError
from ._system.roots import NestedStep as NestedStep
from ._system.roots import StoreError as StoreError
from ._system.roots import UnrecordableValue as UnrecordableValue
from ._system.roots import reduced
from ._system.text import safe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from .record import StepError, StepRecord


class RunBusy(DurableError):
    """Another runner holds the run's lock.

    `holder` says who, as far as the store knows. `since` is when the lock was taken, or None.
    """

    def __init__(self, run_id: str, *, holder: str, since: datetime | None) -> None:
        when = f" since {since.isoformat(timespec='seconds')}" if since else ""
        super().__init__(f"run {run_id!r} is held by {holder}{when}; wait, or pass `lock_wait=` seconds to Runner or @flow")
        self.run_id = run_id
        self.holder = holder
        self.since = since


class LockLost(DurableError):
    """The runner lost the run's lock, so another runner may be working on the run. It starts no further step."""


class StepFailed(DurableError):
    """A step failed for good, and its failure is recorded.

    In the run in which the step failed, it is raised from the original exception. Every replay raises an equal one.
    `error` is the recorded `StepError`: branch on it with `failed.error.matches(TimeoutError)`.
    """

    def __init__(self, record: StepRecord) -> None:
        if record.error is None and record.status == "failure":
            raise CorruptLog(
                f"step {record.step_id!r} of run {record.run_id!r}, revision {record.revision}, has status 'failure' but no error"
            )
        if record.error is None:
            raise ValueError(f"StepFailed needs a record with status 'failure', not {record!r}")
        super().__init__(_failure(record, record.error))
        self.record = record
        self.error: StepError = record.error
        self.run_id: str = record.run_id
        self.step_id: str = record.step_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepFailed) and self.record == other.record

    def __hash__(self) -> int:
        return hash(self.record.id)


def _failure(record: StepRecord, error: StepError) -> str:
    if record.step_id == "$flow":  # which users don't know; the message of the step's failure says all of it
        return error.message if error.matches(StepFailed, RunCancelled) else f"run {record.run_id!r} failed: {error}"
    attempts = f" after {record.attempt} attempts" if record.attempt > 1 else ""
    return f"run {record.run_id!r} failed at step {record.step_id!r}{attempts}: {error}"


class StepInterrupted(DurableError):
    """An at-most-once step was started and has no outcome. It may or may not have happened, so it is not run again.

    Find out what happened, then call `resolve` or `retry` of `durable_core.control`, or give the step `recover=`.
    """

    def __init__(self, record: StepRecord, *, unlocked: bool = False) -> None:
        hint = (
            "recover= is called only by a runner that holds the lock: use `async with Runner(...)`"
            if unlocked
            else ("find out whether it happened, then call durable_core.control.resolve or retry, or give the step recover=")
        )
        super().__init__(
            f"step {record.step_id!r} of run {record.run_id!r} was started at {record.started_at.isoformat(timespec='seconds')}"
            f" (attempt {record.attempt}) and has no outcome; {hint}"
        )
        self.record = record
        self.run_id: str = record.run_id
        self.step_id: str = record.step_id


class RunCancelled(BaseException):
    """Somebody cancelled the run, or its time limit has passed. Steps and waits without an outcome raise this.

    Like asyncio's `CancelledError` it is not an `Exception`, so an `except Exception` in a flow doesn't catch it. Undo your work
    in `except RunCancelled`, in steps with `when_cancelled=True`. Callers of a cancelled run get `StepFailed` instead, and its
    error matches this class. `record` is the entry with the request; `reason` and `by` say why and who, or are None.
    """

    def __init__(self, record: StepRecord) -> None:
        asked = record.notes.get("cancelled", record.notes)
        asked = asked if isinstance(asked, dict) else {}
        reason, by = asked.get("reason"), asked.get("by")
        super().__init__(
            f"run {record.run_id!r} was cancelled at {record.ended_at.isoformat(timespec='seconds')}"
            + (f" by {safe(str(by))}" if by else "")
            + (f": {safe(str(reason))}" if reason else "")
        )
        self.record = record
        self.run_id: str = record.run_id
        self.reason: str | None = reason
        self.by: str | None = by

    __reduce__ = reduced


class RunSuspended(BaseException):
    """The run waits for longer than `wait_limit`: end the process, and run it again later.

    `waiting_for` are the ids of its waits. `until` is the earliest time at which it can continue by itself, or None if somebody
    else has to act. `pairs` names the same waits with their runs, those of children too. It is not an `Exception`, so an
    `except Exception` in a flow doesn't catch it.
    """

    def __init__(
        self, run_id: str, *, waiting_for: tuple[str, ...], until: datetime | None, pairs: tuple[tuple[str, str], ...] = ()
    ) -> None:
        when = f", until {until.isoformat(timespec='seconds')} at the latest" if until else ""
        super().__init__(f"run {run_id!r} waits for {', '.join(map(repr, waiting_for))}{when}; run it again later")
        self.run_id = run_id
        self.waiting_for = waiting_for
        self.until = until
        self.pairs: tuple[tuple[str, str], ...] = pairs or tuple((run_id, step_id) for step_id in waiting_for)

    __reduce__ = reduced


class ChildStopped(BaseException):
    """A child flow crashed or was parked; the flow that called it then crashes or is parked too.

    It is not an `Exception`. `record` is the newest `$flow` entry of the child, `error` is what stopped it.
    """

    def __init__(self, record: StepRecord, error: BaseException) -> None:
        super().__init__(f"child run {record.run_id!r} {'crashed' if record.status == 'reopened' else 'is parked'}: {error}")
        self.record = record
        self.run_id: str = record.run_id
        self.error = error

    __reduce__ = reduced


class SomeFailed(DurableError):
    """More items of a `map` failed than it tolerates.

    `failures` holds the `StepError` of each item that failed, by its key; `values` the values of the others, by theirs.
    `record` is the entry of the map itself.
    """

    def __init__(self, record: StepRecord, values: Mapping[str, Any], failures: Mapping[str, StepError]) -> None:
        some = ", ".join(f"{key!r} ({error})" for key, error in [*failures.items()][:3])
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(
            f"run {record.run_id!r} failed at {record.step_id!r}: {len(failures)} of {len(failures) + len(values)} items failed:"
            f" {some}{more}"
        )
        self.record = record
        self.run_id: str = record.run_id
        self.step_id: str = record.step_id
        self.values = values
        self.failures = failures


class Withdrawn(DurableError):
    """A wait lost to another contender of `first`, so nobody needs its outcome."""


class SentFailure(DurableError):
    """Somebody reported from outside that an event failed. `send_failure` records this error if it is given a str."""


class Refused(DurableError):
    """A request from outside doesn't fit the run's state; nothing was appended."""


class NotFound(Refused):
    """There is no such run or step; the message lists what exists."""


class AlreadyDecided(Refused):
    """Another decision came first; `record` says whose and when."""

    def __init__(self, record: StepRecord, what: str) -> None:
        super().__init__(
            f"{record.step_id!r} of run {record.run_id!r} was decided at {record.ended_at.isoformat(timespec='seconds')}: {what}"
        )
        self.record = record


class DeadlinePassed(Refused, TimeoutError):
    """The deadline of a wait passed before anybody decided."""


class CopyConflict(Refused):
    """The target of a copy already holds other entries of the run."""


class ResultNotRecorded(DurableError):
    """A step's function ran, but its outcome could not be appended within `store_timeout`.

    `record` is the outcome and `result` its value (None for a failure). The runner keeps the record: the next step of the same
    runner appends it first, or raises this again. In a new process the step runs again, unless the append succeeded unnoticed.
    """

    def __init__(self, record: StepRecord, result: object) -> None:
        super().__init__(
            f"step {record.step_id!r} of run {record.run_id!r} ran ({record.status}), but the store could not record its outcome;"
            " the outcome is in `.result` and `.record`, and the next step of this runner tries to record it first"
        )
        self.record = record
        self.result = result


class StepReused(DurableError):
    """One step id was used for two different calls on one runner; the second one was not run."""


class StepDrift(DurableError, UserWarning):
    """The code doesn't match what an earlier run recorded under the same step id.

    It is a warning if the recorded outcome can still be used, and an error if it can't. `step_id` is the step, or None.
    """

    def __init__(self, message: str, *, step_id: str | None = None) -> None:
        super().__init__(message)
        self.step_id = step_id
