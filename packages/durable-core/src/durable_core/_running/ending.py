"""What ends a run, decided by one pure function of the exception that left its flow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from durable_core.errors import (
    ChildStopped,
    LockLost,
    ResultNotRecorded,
    RunBusy,
    RunCancelled,
    RunSuspended,
    SomeFailed,
    StepDrift,
    StepFailed,
    StepInterrupted,
    StoreError,
)

End = Literal["suspended", "parked", "cancelled", "failed", "crashed", "succeeded"]

_SAYS_NOTHING = (LockLost, StoreError, ResultNotRecorded, RunBusy)
_PARKS = (StepInterrupted, StepDrift)


class Answer(msgspec.Struct, frozen=True):
    """A step that a flow called while it handled an exception."""

    step_id: str
    error: BaseException


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a flow's function, and what else is needed to judge it."""

    run_id: str
    error: BaseException | None
    """The exception that it raised; None if it returned."""
    is_own: bool = False
    """True if it is the flow's own failure, whatever its class, such as a `CancelledError` that wasn't meant for the run."""
    suspended: bool = False
    """True if a wait of the run raised `RunSuspended`, which the flow may have swallowed."""
    told: bool = False
    """True if `RunCancelled` was raised in it."""
    undoing: Collection[str] = ()
    """The steps with `when_cancelled=True`."""
    fails_on: tuple[type[BaseException], ...] = ()
    answers: Sequence[Answer] = ()
    outside: Collection[int] = ()
    """The ids of exceptions that were being handled where the flow was called."""


class Verdict(msgspec.Struct, frozen=True):
    """The state of the run now, and its cause."""

    end: End
    failed: tuple[StepFailed | SomeFailed, ...] = ()
    """The failures of its steps that left the flow."""
    answered_by: tuple[str, ...] = ()
    """The steps with which the flow answered the exception that left it."""


def judge(left: Left) -> Verdict | None:
    """Return what it means for the run, by priority; None if it says nothing about the run."""
    error = left.error
    if not left.is_own and any(_says_nothing(each, left.run_id) for each in leaves(error)):
        return None
    reached = [each for each in behind(error) if id(each) not in left.outside]
    failed = tuple(each for each in _by_step(reached) if each.run_id == left.run_id)
    if (error is not None and only_suspends(error)) or (left.suspended and not failed):
        return Verdict("suspended")
    if any(isinstance(each, _PARKS) or _is_parked_child(each) for each in leaves(error)):
        return Verdict("parked")
    if left.told and not any(each.step_id in left.undoing for each in failed):
        return Verdict("cancelled")
    if error is None:
        return Verdict("succeeded")
    answers = () if left.told else left.answers
    ids = {*map(id, reached)}
    answered_by = tuple(dict.fromkeys(each.step_id for each in answers if id(each.error) in ids))
    if failed or answered_by or any(isinstance(each, left.fails_on) for each in (error, *leaves(error))):
        return Verdict("failed", failed, answered_by)
    return Verdict("crashed")


def only_suspends(error: BaseException | None) -> bool:
    """Return True if only a suspension was raised."""
    return all(isinstance(each, RunSuspended) for each in leaves(error))


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, or the members of a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    elif error is not None:
        yield error


def behind(error: BaseException | None) -> list[BaseException]:
    """Return an exception, the members of groups, and their causes and contexts, each once."""
    found: dict[int, BaseException] = {}
    waiting = [] if error is None else [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) not in found:
            found[id(each)] = each
            members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
            waiting.extend(other for other in (*members, each.__cause__, each.__context__) if other is not None)
    return [*found.values()]


def _says_nothing(error: BaseException, run_id: str) -> bool:
    """Return True if it says nothing about the run: it is about the lock, its store or another run, or ends a program."""
    own = isinstance(error, (RunSuspended, RunCancelled)) and error.run_id == run_id
    if own or isinstance(error, ChildStopped):
        return False
    return isinstance(error, _SAYS_NOTHING) or not isinstance(error, Exception)


def _is_parked_child(error: BaseException) -> bool:
    return isinstance(error, ChildStopped) and error.record.status == "waiting"


def _by_step(errors: Iterable[BaseException]) -> Iterator[StepFailed | SomeFailed]:
    """Yield the first failure of each step."""
    seen: set[str] = set()
    for each in errors:
        if isinstance(each, (StepFailed, SomeFailed)) and each.step_id not in seen:
            seen.add(each.step_id)
            yield each
