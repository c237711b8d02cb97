"""One call of a step: checked when it is made, and kept until it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import CO_COROUTINE, CO_ITERABLE_COROUTINE
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_core._calls.functions import Identity, changed_variable, identity_of, is_bare, with_arguments
from durable_core._log.chain import decided
from durable_core._system.ids import check_id, check_own_id
from durable_core._system.text import safe
from durable_core._values.annotations import Closure, called_by, closure_of
from durable_core._values.returns import Codec, codec_for, codec_of
from durable_core.context import running
from durable_core.errors import StepReused
from durable_core.options import Policy

from .race import note_step
from .run import Run

if TYPE_CHECKING:
    from .attempt import Caller

ANNOTATED: Final = msgspec.UNSET
"""Stands for the type in a function's return annotation."""


class Call(msgspec.Struct, frozen=True):
    """One call of `Runner.step`, checked and ready to run."""

    step_id: str
    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    fingerprint: str | None
    codec: Codec[Any] | None
    """The codec of the value; None to record no value."""
    policy: Policy
    reuses_id: bool
    """True if the id was used before for another call."""
    is_async: bool
    """True if `fn` is called on the loop, and not in a thread."""
    closure: Closure
    """The variables that `fn` closes over, as they were when `step` was called; empty if nothing will run."""
    note: dict[str, Any] | None
    """The note of its entries: the exception that the flow was handling when it called the step."""
    thread: Caller | None = None
    """The thread that calls plain functions; None for a worker thread."""


_ASYNC: Final = CO_COROUTINE | CO_ITERABLE_COROUTINE
_REMEMBERED: Final = 4096
_plain: Final[dict[FunctionType, tuple[CodeType, Identity, Codec[Any] | None, bool]]] = {}
"""For functions that consist only of code, as most do: code, identity, codec, and whether the function is async."""


def prepare(
    run: Run,
    step_id: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    returns: Any,
    policy: Policy,
    options: dict[str, Any],
    thread: Caller | None = None,
) -> Call:
    """Check the call and note its identity now, because a loop's variable may have changed when its coroutine runs."""
    if running.get() is not None:
        refuse_nested(run, step_id)
    note_step(run, step_id)
    known = _plain.get(fn) if type(fn) is FunctionType and returns is ANNOTATED else None
    if known is not None and known[0] is fn.__code__:  # tools that reload code replace it
        _, function, codec, runs_on_loop = known
        identity, fingerprint = with_arguments(function, args)
    else:
        codec, runs_on_loop = _look_at(step_id, fn, returns)
        identity, fingerprint = identity_of(fn, args)
    name = options.pop("name", None) if options else None
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name of step {step_id!r} must be a str, not {name!r}")
    if options:
        policy = policy.override(options)
        if policy.timeout is not None and not may_be_awaited(fn):
            raise TypeError(
                f"step {step_id!r} has timeout={policy.timeout:g}, but {fn!r} is a plain function, whose thread can't be stopped."
                " Make it async, or set a time limit in what it calls"
            )
    first = run.calls.get(step_id) if type(step_id) is str else None
    if first is None:
        step_id = check_own_id("step_id", step_id)
        first = run.calls.setdefault(step_id, identity)
    reuses_id = first is not identity and first != identity
    closure = [] if known is not None or decided(run.log.latest(step_id)) else closure_of(fn)
    if policy.recover is not None:
        closure = [*closure, *closure_of(policy.recover)]
    if policy.when_cancelled:
        run.undoing.add(step_id)
    error = None if run.flow is None else sys.exception()
    answered = None if error is None else run.answer(step_id, error)
    note: dict[str, Any] | None = None if answered is None else {"answered": answered}
    if policy.when_cancelled and run.told:
        note = {"answered": "RunCancelled", "told_at": [*run.told_at]}
    name = safe(name) if name else step_id  # as the record has it
    return Call(step_id, name, fn, args, fingerprint, codec, policy, reuses_id, runs_on_loop, closure, note, thread)


def _look_at(step_id: str, fn: Callable[..., Any], returns: Any) -> tuple[Codec[Any] | None, bool]:
    if not callable(fn):
        raise _not_callable(step_id, fn)
    if returns is not ANNOTATED:
        return None if returns is None else codec_for(returns), is_async(fn)
    codec = codec_of(fn)
    if type(fn) is FunctionType and is_bare(fn):
        if len(_plain) >= _REMEMBERED:
            _plain.clear()
        _plain[fn] = fn.__code__, identity_of(fn, ())[0], codec, is_async(fn)
    return codec, is_async(fn)


def _not_callable(step_id: object, fn: object) -> TypeError:
    check_id("step_id", step_id)  # the two may be swapped
    return TypeError(f"fn of step {step_id!r} must be a function, not {fn!r}; pass the function, not its result")


def check(run: Run, call: Call) -> None:
    """Raise if the function must not be called: nothing may begin any more, or a loop's variable has changed meanwhile.

    Works from any thread. Raises `StepReused` if a variable that the function closes over has another value than when `step` was
    called.
    """
    run.check(undoes=call.policy.when_cancelled)
    check_variables(run, call.step_id, call.closure)


def check_variables(run: Run, step_id: str, closure: Closure) -> None:
    """Raise `StepReused` if a variable holds another value than when `closure` was read."""
    if closure and (name := changed_variable(closure)):
        raise StepReused(
            f"the function of step {step_id!r} of run {run.id!r} uses the variable {name!r}, whose value has changed since the"
            f" step was called; nothing was run. Pass it as an argument, or as a default: `lambda {name}={name}: …`"
        )


def may_change_its_variables(call: Call) -> None:
    """Note that the function was called. Unless it is a lambda, it may change the variables that it closes over."""
    if call.closure and not is_lambda(call.fn):
        call.closure.clear()


def refuse_nested(run: Run, step_id: str) -> None:
    """Raise `NestedStep` inside the function of another step of this run."""
    if (outer := running.get()) is not None:
        outer.refuse(run, step_id)


def use_id(run: Run, step_id: str, identity: Identity) -> None:
    """Note the call of an id. Raises `NestedStep` inside a step, and `StepReused` if the id was used for another call."""
    refuse_nested(run, step_id)
    note_step(run, step_id)
    if run.calls.setdefault(step_id, identity) != identity:
        raise reused(run, step_id)


def reused(run: Run, step_id: str) -> StepReused:
    """Make the error for an id that was used for another call."""
    return StepReused(
        f"step {step_id!r} of run {run.id!r} was called before with another function, other arguments, or other values of the"
        " variables that it uses; nothing was run. In a loop, number the steps: f'charge-{order.id}'"
    )


def code_of(fn: Callable[..., Any]) -> CodeType | None:
    """Return the code that runs when `fn` is called, through partials, methods and callable objects; None for builtins."""
    code = getattr(called_by(fn), "__code__", None)
    return code if isinstance(code, CodeType) else None


def is_async(fn: Callable[..., Any]) -> bool:
    """Return True if calling `fn` makes a coroutine, so that it is called on the loop."""
    code = code_of(fn)
    return code is not None and bool(code.co_flags & _ASYNC)


def may_be_awaited(fn: Callable[..., Any]) -> bool:
    """Return True if `fn` can have a time limit: it is async, or a lambda, which may return an awaitable."""
    return is_async(fn) or is_lambda(fn)


def is_lambda(fn: Callable[..., Any]) -> bool:
    """Return True if `fn` is a lambda, which can't assign the variables that it closes over."""
    code = code_of(fn)
    return code is not None and code.co_name == "<lambda>"
