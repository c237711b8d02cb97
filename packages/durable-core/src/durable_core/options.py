"""The options of steps, maps, runners and flows."""

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
    """Make a growing delay: `initial` seconds after the first attempt, then `factor` times longer each time, at most `limit`.

    With `jitter`, each delay is a random part of that, so that runs that failed together don't all retry together.
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
    """The name that people read; by default the step id."""
    max_attempts: int
    """The total number of attempts, at least 1."""
    retry_delay: Delay
    """Seconds between attempts: a number, a timedelta, or a function of the failed attempt's number, or of that and its error."""
    retry_on: RetryOn
    """Exception types, or a predicate; any other exception fails the step at once."""
    timeout: float | timedelta | None
    """Time limit of one attempt, in seconds or as a timedelta; only for functions that are awaited."""
    at_most_once: bool
    """Record the intent before each attempt, so that a crash never leads to a second one; `max_attempts` is 1 by default."""
    recover: Callable[[], object] | None
    """Called for an attempt without outcome; returns `Recovered(value)` to record that value, or None to start the step again."""
    when_cancelled: bool
    """Run the step in a cancelled run too; for steps that undo something in `except RunCancelled`."""


class MapOptions(StepOptions, Generic[Item], total=False):
    """The options of a map, besides those of its steps."""

    key: Callable[[Item], str | int] | None
    """Returns a str or an int that identifies the item; without it, items are numbered from 0."""
    limit: int
    """How many items run at the same time; 20 by default."""


class RunnerOptions(TypedDict, total=False):
    """The options of a `Runner`, as described there."""

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
    """Seconds from the run's first start until it is cancelled; None for no limit."""
    concurrency: tuple[str, int] | Callable[..., tuple[str, int] | None] | None
    """A name and how many runs with that name workers run at the same time; or a function of the input, passed by name."""
    fails_on: type[Exception] | tuple[type[Exception], ...]
    """Exception types that end the run as failed when they leave the function, besides the failures of its steps."""


FLOW_ONLY: Final = frozenset({"timeout", "fails_on", "concurrency"})


def runner_options(options: FlowOptions) -> RunnerOptions:
    """Return the options of a flow that belong to its runner."""
    return {name: value for name, value in options.items() if name not in FLOW_ONLY}  # type: ignore[return-value]


class Recovered(msgspec.Struct, Generic[T], frozen=True):
    """The answer of `recover` if the step had happened, with the value that the step would have returned."""

    value: T


class Policy(msgspec.Struct, frozen=True):
    """The options of a step, checked."""

    max_attempts: int = 1
    retry_delay: Delay = 0.0
    retry_on: RetryOn = Exception
    timeout: float | None = None
    at_most_once: bool = False
    recover: Callable[[], object] | None = None
    when_cancelled: bool = False

    def override(self, options: Mapping[str, Any]) -> Policy:
        """Return this policy with `options` replaced. Raises `TypeError` or `ValueError` for an invalid option."""
        for name, value in options.items():
            if name not in _OPTIONS:
                raise unknown_option(name, ("name", "returns", *_OPTIONS), "pass fn its keyword arguments with functools.partial")
            suits, expected = _OPTIONS[name]
            if not suits(value):
                raise TypeError(f"{name} must be {expected}, not {value!r}")
        if (attempts := options.get("max_attempts", 1)) < 1:
            raise ValueError(f"max_attempts must be at least 1, because it counts the first attempt too, not {short(attempts)}")
        if not callable(delay := options.get("retry_delay", 0)):
            duration("retry_delay, unless it is a function of the attempt,", delay)
        if (timeout := options.get("timeout")) is not None:
            options = {**options, "timeout": duration("timeout", timeout, zero=False)}
        if options.get("at_most_once"):
            options = {"max_attempts": 1, **options}
        elif options.get("recover") is not None:
            raise TypeError("recover= needs at_most_once=True: other steps run again after a crash")
        return msgspec.structs.replace(self, **options)

    def retries(self, error: BaseException, attempt: int) -> bool:
        """Return True if another attempt follows this one, which raised `error`. Raises what a predicate raises, from `error`."""
        if attempt >= self.max_attempts or isinstance(error, UnrecordableValue):
            return False
        if isinstance(self.retry_on, type | tuple):
            kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
            # If somebody else cancelled an awaited task, that is a failure like any other exception.
            return isinstance(error, kinds) or (isinstance(error, CancelledError) and Exception in kinds)
        try:
            return bool(self.retry_on(error))
        except Exception as failure:
            raise failure from error

    def delay(self, attempt: int, error: BaseException) -> float:
        """Return the seconds between this attempt and the next. Raises what the delay function raises, from `error`."""
        given: Any = self.retry_delay
        if not callable(given):
            return duration("retry_delay", given)
        try:
            delay = given(attempt, error) if _takes_error(given) else given(attempt)
            return duration(f"retry_delay({attempt})", delay)
        except Exception as failure:
            raise failure from error


def check_step_options(options: StepOptions) -> StepOptions:
    """Check the options of a step before it runs, and return them unchanged.

    Raises what `Runner.step` would: `TypeError` for an unknown option or a wrong type, `ValueError` for a value out of range.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"options of a step must be a dict, such as StepOptions(max_attempts=3), not {options!r}")
    name = options.get("name")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    Policy().override({option: value for option, value in options.items() if option != "name"})
    return options


def _takes_error(fn: Callable[..., Any]) -> bool:
    """Return True if a delay function takes the error besides the attempt."""
    try:
        parameters = signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins tell nothing of theirs
        return False
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in positional for each in parameters) > 1


def unknown_option(name: str, known: Collection[str], advice: str = "") -> TypeError:
    """Make the error for an unknown option."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}" + (f"; {advice}" if advice else "")
    return TypeError(f"unknown option {name!r}; {hint}")


def duration(what: str, value: object, *, zero: bool = True) -> float:
    """Return a number of seconds or a timedelta as seconds. Raises if it is negative, infinite or not a number."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds or a timedelta, not {value!r}")
    if not 0 <= seconds <= sys.float_info.max or (seconds == 0 and not zero):
        raise ValueError(
            f"{what} must be a finite number of seconds, {'at least' if zero else 'more than'} 0, not {short(value)}"
        )
    return float(seconds)


def _is_retry_on(value: object) -> bool:
    if isinstance(value, type | tuple):
        kinds = value if isinstance(value, tuple) else (value,)
        return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    return callable(value) and not iscoroutinefunction(value)


_OPTIONS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "max_attempts": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number, at least 1"),
    "retry_delay": (lambda value: not iscoroutinefunction(value), "seconds, a timedelta or a plain function of the attempt"),
    "retry_on": (_is_retry_on, "an exception type, a tuple of them, or a plain function of the exception"),
    "timeout": (lambda value: not isinstance(value, bool), "seconds, a timedelta or None"),
    "at_most_once": (lambda value: isinstance(value, bool), "True or False"),
    "recover": (lambda value: value is None or callable(value), "a function without arguments"),
    "when_cancelled": (lambda value: isinstance(value, bool), "True or False"),
}
"""For each option: a check of its type, and what was expected, in words. The range of numbers is checked later."""
