"""When a failed attempt is followed by another, and after how long."""

from __future__ import annotations

import math
import sys
from asyncio import CancelledError
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar

import msgspec

from ._system.text import short
from .clock import Clock
from .errors import UnrecordableValue
from .events import OnEvent

T = TypeVar("T")
Item = TypeVar("Item")

Delay = float | timedelta | Callable[[int], float | timedelta] | Callable[[int, BaseException], float | timedelta]
RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]


def exponential(
    initial: float | timedelta = 0.5, *, factor: float = 2, limit: float | timedelta = 60, jitter: bool = False
) -> Callable[[int], float]:
    """Make a delay that grows: `initial` seconds after the first attempt, `factor` times longer after each, at most `limit`.

    With `jitter` each delay is a random part of that, so that many runs that failed together don't come back together.
    """
    first, most = duration("initial", initial), duration("limit", limit)
    if not (isinstance(factor, int | float) and 1 <= factor < math.inf):
        raise ValueError(f"factor must be a number of at least 1, not {factor!r}")

    def delay(attempt: int) -> float:
        try:
            seconds = min(first * float(factor) ** (attempt - 1), most)
        except OverflowError:
            seconds = most
        if not jitter:
            return seconds
        from random import uniform  # a tenth of what importing the library would take

        return uniform(0, seconds)

    return delay


class StepOptions(TypedDict, total=False):
    """The options of one step: its name, and options that replace the runner's."""

    name: str | None
    """What people read; by default the step id."""
    max_attempts: int
    """The number of all attempts, from 1."""
    retry_delay: Delay
    """Seconds between attempts: a number, a timedelta, or a function of the failed attempt's number, or of that and its error."""
    retry_on: RetryOn
    """Exception types, or a predicate; any other exception fails the step at once."""
    timeout: float | timedelta | None
    """Seconds that one attempt may wait; only for functions that are awaited."""
    at_most_once: bool
    """Record the intent before each attempt, so that a crash never leads to a second one; `max_attempts` is 1 by default."""
    recover: Callable[[], object] | None
    """For an attempt that left no outcome: returns `Recovered(value)` to record that, or None to let the step start again."""
    when_cancelled: bool
    """Run the step in a cancelled run too: for steps that undo something in `except RunCancelled`."""


class MapOptions(StepOptions, Generic[Item], total=False):
    """The options of a map, besides those of its steps."""

    key: Callable[[Item], str | int] | None
    """Returns a text or a number that only this item has; without it items are numbered from 0."""
    limit: int
    """How many items are tried at the same time; 20 by default."""


class RunnerOptions(TypedDict, total=False):
    """The options of a `Runner`, which explains them."""

    max_attempts: int
    retry_delay: Delay
    retry_on: RetryOn
    on_event: OnEvent | None
    on_drift: Literal["warn", "raise"]
    wait_limit: float | timedelta | None
    lock_wait: float | timedelta
    store_timeout: float | timedelta
    clock: Clock | None


class FlowOptions(RunnerOptions, total=False):
    """The options of a flow: those of its runner, and three more."""

    timeout: float | timedelta | None
    """Seconds from the run's first start, after which it is cancelled; None for no limit."""
    concurrency: tuple[str, int] | Callable[..., tuple[str, int] | None] | None
    """A name, and how many runs with it workers run at the same time; or a function of the input, which it gets by name."""
    fails_on: type[Exception] | tuple[type[Exception], ...]
    """Exceptions that end the run as failed when they leave the function, besides the failures of its steps."""


FLOW_ONLY: Final = frozenset({"timeout", "fails_on", "concurrency"})


def runner_options(options: FlowOptions) -> RunnerOptions:
    """Return those of a flow's options that are its runner's."""
    return {name: value for name, value in options.items() if name not in FLOW_ONLY}  # type: ignore[return-value]


class Recovered(msgspec.Struct, Generic[T], frozen=True):
    """What `recover` returns if the step had happened, with the value that the step would have returned."""

    value: T


class Policy(msgspec.Struct, frozen=True):
    """The options in force for a step, checked."""

    max_attempts: int = 1
    retry_delay: Delay = 0.0
    retry_on: RetryOn = Exception
    timeout: float | None = None
    at_most_once: bool = False
    recover: Callable[[], object] | None = None
    when_cancelled: bool = False

    def override(self, options: Mapping[str, Any]) -> Policy:
        """Return this policy with `options` in place. Raises `TypeError` or `ValueError` for one that can't be."""
        for name, value in options.items():
            if name not in _OPTIONS:
                raise unknown_option(name, ("name", "returns", *_OPTIONS), "what fn takes by name goes through functools.partial")
            suits, expected = _OPTIONS[name]
            if not suits(value):
                raise TypeError(f"{name} must be {expected}, not {value!r}")
        if (attempts := options.get("max_attempts", 1)) < 1:
            raise ValueError(f"max_attempts counts all attempts, so it starts at 1, not {short(attempts)}")
        if not callable(delay := options.get("retry_delay", 0)):
            duration("retry_delay, unless it is a function of the attempt,", delay)
        if (timeout := options.get("timeout")) is not None:
            options = {**options, "timeout": duration("timeout", timeout, zero=False)}
        if options.get("at_most_once"):
            options = {"max_attempts": 1, **options}
        elif options.get("recover") is not None:
            raise TypeError("recover= is for steps with at_most_once=True: others simply run again after a crash")
        return msgspec.structs.replace(self, **options)

    def retries(self, error: BaseException, attempt: int) -> bool:
        """Tell whether another attempt follows this one, which ended in `error`. Raises what a predicate raises, from `error`."""
        if attempt >= self.max_attempts or isinstance(error, UnrecordableValue):
            return False
        if isinstance(self.retry_on, type | tuple):
            kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
            # A task that somebody else cancelled fails whoever awaits it like any other exception.
            return isinstance(error, kinds) or (isinstance(error, CancelledError) and Exception in kinds)
        try:
            return bool(self.retry_on(error))
        except Exception as failure:
            raise failure from error

    def delay(self, attempt: int, error: BaseException) -> float:
        """Return the seconds between this attempt and the next. Raises what goes wrong with them from `error`."""
        given: Any = self.retry_delay
        if not callable(given):
            return duration("retry_delay", given)
        try:
            delay = given(attempt, error) if _takes_error(given) else given(attempt)
            return duration(f"retry_delay({attempt})", delay)
        except Exception as failure:
            raise failure from error


def check_step_options(options: StepOptions) -> StepOptions:
    """Return options of a step as they are, for code that takes them long before a step runs.

    Raises what `Runner.step` would: `TypeError` for an unknown option or another type, `ValueError` for what is out of range.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"options of a step must be a dict, such as StepOptions(max_attempts=3), not {options!r}")
    name = options.get("name")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a text, not {name!r}")
    Policy().override({option: value for option, value in options.items() if option != "name"})
    return options


def _takes_error(fn: Callable[..., Any]) -> bool:
    """Tell whether a function of the attempt needs the error, too."""
    try:
        parameters = signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins tell nothing of theirs
        return False
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in positional for each in parameters) > 1


def unknown_option(name: str, known: Collection[str], advice: str = "") -> TypeError:
    """Make the error of an option that there isn't."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}" + (f"; {advice}" if advice else "")
    return TypeError(f"unknown option {name!r}; {hint}")


def duration(what: str, value: object, *, zero: bool = True) -> float:
    """Return a number of seconds, or a timedelta, as seconds. Raises for one that is negative, endless or not a number."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds or a timedelta, not {value!r}")
    if not 0 <= seconds <= sys.float_info.max or (seconds == 0 and not zero):
        raise ValueError(f"{what} must be a finite number of seconds {'from' if zero else 'above'} 0, not {short(value)}")
    return float(seconds)


def _is_retry_on(value: object) -> bool:
    if isinstance(value, type | tuple):
        kinds = value if isinstance(value, tuple) else (value,)
        return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    return callable(value) and not iscoroutinefunction(value)


_OPTIONS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "max_attempts": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number from 1"),
    "retry_delay": (lambda value: not iscoroutinefunction(value), "seconds, a timedelta or a plain function of the attempt"),
    "retry_on": (_is_retry_on, "exception types, one or a tuple of them, or a plain function of the exception"),
    "timeout": (lambda value: not isinstance(value, bool), "seconds, a timedelta or None"),
    "at_most_once": (lambda value: isinstance(value, bool), "True or False"),
    "recover": (lambda value: value is None or callable(value), "a function without arguments"),
    "when_cancelled": (lambda value: isinstance(value, bool), "True or False"),
}
"""Of each option what it has to be, in code and in words; how large a number may be is looked at after that."""
