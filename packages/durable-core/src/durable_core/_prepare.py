"""One call of a step: checked when it is made, and held until its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from ._calls import Call, identify, same
from ._ids import check_own_id
from ._invoke import may_be_awaited
from ._run import Run, decided
from ._values import codec_for, codec_of
from .context import running
from .errors import StepReused
from .record import StepRecord
from .retry import Policy

ANNOTATED: Final = msgspec.UNSET
"""Stands for the type that a function's annotation tells."""


def prepare(
    run: Run,
    step_id: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    name: str | None,
    returns: Any,
    policy: Policy,
    options: Mapping[str, Any],
) -> Call:
    """Check the call and note what it is, now: by the time that its coroutine runs, a loop's variable has moved on."""
    if running.get() is not None:
        refuse_nested(run, step_id)
    if not callable(fn):
        raise TypeError(f"fn of step {step_id!r} must be a function, not {fn!r}; pass the function, not its result")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name of step {step_id!r} must be a str, not {name!r}")
    if options:
        policy = policy.override(options)
        if policy.timeout is not None and not may_be_awaited(fn):
            raise TypeError(
                f"timeout={policy.timeout:g} for step {step_id!r}, but {fn!r} is a plain function: its thread can't be stopped."
                " Make it async, or give the time limit to what it calls"
            )
    codec = codec_of(fn) if returns is ANNOTATED else None if returns is None else codec_for(returns)
    identity, fingerprint = identify(fn, args)
    if type(step_id) is not str or step_id not in run.calls:
        step_id = check_own_id("step_id", step_id)
    known = run.calls.setdefault(step_id, identity)
    return Call(step_id, name or step_id, fn, args, fingerprint, codec, policy, known is identity or same(known, identity))


async def turn(run: Run, call: Call) -> StepRecord | None:
    """Wait until the call may go on, and return the step's newest entry. Raises what keeps it from that."""
    step_id = call.step_id
    if not call.is_same:
        raise reused(run, step_id)
    await run.ready()
    while not decided(latest := run.log.latest(step_id)) and step_id in run.running:
        await run.ended(step_id)  # the same call elsewhere; if that is cancelled, this one takes over
        await run.ready()  # unless its outcome is kept, or the run was suspended meanwhile
    return latest


def refuse_nested(run: Run, step_id: str) -> None:
    """Raise `NestedStep` inside the function of another step of this run."""
    if (outer := running.get()) is not None:
        outer.refuse(run, step_id)


def reused(run: Run, step_id: str) -> StepReused:
    """Make the error of an id that was used for something else."""
    return StepReused(
        f"step {step_id!r} of run {run.id!r} was called before with another function, other arguments or other values in its"
        " closure; nothing was run. In a loop, number the steps: f'charge-{order.id}'"
    )
