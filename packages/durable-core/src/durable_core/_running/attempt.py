"""One attempt: calling a function once, on the loop or in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from inspect import CO_COROUTINE, CO_ITERABLE_COROUTINE, isawaitable, iscoroutine
from types import CodeType
from typing import Any, Final, NamedTuple, TypeGuard

from durable_core._system.waits import cancellations, finished
from durable_core.context import StepContext, running
from durable_core.errors import NestedStep

_ASYNC: Final = CO_COROUTINE | CO_ITERABLE_COROUTINE
_THREADS: Final = 40

Failure = Exception | asyncio.CancelledError
"""What a function raised. A `CancelledError` that nobody meant for the task is a failure like any other."""


class Outcome(NamedTuple):
    """How an attempt ended."""

    value: Any = None
    error: Failure | None = None
    cancelled: asyncio.CancelledError | None = None
    """The caller's own cancellation, which waits until a thread's outcome is recorded."""


class Threads:
    """Worker threads for the synchronous steps of one loop, whose own executor stays free for stores and name look-ups."""

    def __init__(self) -> None:
        self.free: Final = asyncio.Semaphore(_THREADS)
        self.pool: Final = ThreadPoolExecutor(_THREADS, "durable-step")


_threads: Final[dict[asyncio.AbstractEventLoop, Threads]] = {}


class Thread:
    """A worker thread for one call. A step takes it before it begins, so that it waits for nothing once it has begun."""

    def __init__(self, threads: Threads) -> None:
        self._threads: Final = threads
        self._taken = True

    @classmethod
    async def take(cls) -> Thread:
        """Wait until a thread of the running loop is free, and take it."""
        loop = asyncio.get_running_loop()
        if loop not in _threads:
            for closed in [each for each in [*_threads] if each.is_closed()]:
                _threads.pop(closed, None)
            _threads[loop] = Threads()
        threads = _threads[loop]
        await threads.free.acquire()
        return cls(threads)

    async def call(self, check: Callable[[], object], fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        """Call `check` and then `fn` in the thread. It can't be cancelled: it is waited for."""
        try:
            call = asyncio.wrap_future(self._threads.pool.submit(copy_context().run, _called, check, fn, args))
            cancelled = await finished(call)
            value, error = call.result()
        finally:
            self.give()
        if error is not None and not isinstance(error, Failure):
            raise error
        return Outcome(value, error, cancelled)

    def give(self) -> None:
        """Give the thread back, once."""
        if self._taken:
            self._taken = False
            self._threads.free.release()


def _called(check: Callable[[], object], fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    check()
    try:  # a future refuses to carry StopIteration, and would never be done
        return fn(*args), None
    except BaseException as error:
        return None, error


def code_of(fn: Callable[..., Any]) -> CodeType | None:
    """Return the code that calling `fn` runs, through partials, methods and callable objects; None for builtins."""
    called: Any = fn
    while isinstance(called, partial):
        called = called.func
    if not hasattr(called, "__code__") and not isinstance(called, type):
        called = getattr(called, "__func__", None) or type(called).__call__
    code = getattr(called, "__code__", None)
    return code if isinstance(code, CodeType) else None


def is_async(fn: Callable[..., Any]) -> bool:
    """Tell whether calling `fn` makes a coroutine, so that it is called on the loop."""
    code = code_of(fn)
    return code is not None and bool(code.co_flags & _ASYNC)


def may_be_awaited(fn: Callable[..., Any]) -> bool:
    """Tell whether a time limit can mean anything for `fn`: it is async, or a lambda, which may return an awaitable."""
    return is_async(fn) or is_lambda(fn)


def is_lambda(fn: Callable[..., Any]) -> bool:
    """Tell whether `fn` is a lambda, which can't assign the variables that it closes over."""
    code = code_of(fn)
    return code is not None and code.co_name == "<lambda>"


async def attempt(
    context: StepContext,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    timeout: float | None = None,
    *,
    thread: Thread | None = None,
    check: Callable[[], object] = lambda: None,
) -> Outcome:
    """Call `fn` once, as the step of `context`: in `thread`, or on the loop where that is None.

    `check` is called last, and what it raises is raised. So is what ends a program: a cancellation of the caller,
    KeyboardInterrupt, SystemExit.
    """
    token = running.set(context)
    try:
        if thread is None:
            check()
            outcome = await _awaited(fn, args, timeout)
        else:
            outcome = await thread.call(check, fn, args)
            if isawaitable(value := outcome.value):
                if outcome.cancelled is not None:
                    if iscoroutine(value):
                        value.close()
                    raise outcome.cancelled
                outcome = await _awaited(lambda: value, (), timeout)
        if _is_nested(outcome.error):
            raise outcome.error
        return outcome
    finally:
        context.end()
        running.reset(token)


async def _awaited(fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> Outcome:
    before = cancellations()
    try:
        if timeout is None:
            return Outcome(await fn(*args))
        async with asyncio.timeout(timeout) as limit:
            value = await fn(*args)
        if limit.expired():  # the function caught the cancellation, and returned
            raise TimeoutError(f"it took longer than its timeout of {timeout:g} s, and caught the cancellation")
        return Outcome(value)
    except Exception as error:
        return Outcome(error=error)
    except asyncio.CancelledError as error:
        if cancellations() > before:
            raise
        return Outcome(error=error)


def _is_nested(error: BaseException | None) -> TypeGuard[BaseException]:
    """Tell whether a step was started inside the function that raised `error`, perhaps by a task group of it."""
    return isinstance(error, NestedStep) or (isinstance(error, ExceptionGroup) and error.subgroup(NestedStep) is not None)
