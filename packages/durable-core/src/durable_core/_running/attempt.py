"""One attempt: calling a step's function, in a worker thread or on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from inspect import CO_COROUTINE, CO_ITERABLE_COROUTINE, isawaitable, iscoroutine
from types import CodeType
from typing import Any, Final

from durable_core._system.forks import forks
from durable_core._system.waits import finished
from durable_core.context import StepContext, running
from durable_core.errors import NestedStep

_ASYNC: Final = CO_COROUTINE | CO_ITERABLE_COROUTINE
_THREADS: Final = 40


class _Inside(threading.local):
    """How many synchronous steps, one in another's run, the thread is inside of."""

    depth = 0


_inside: Final = _Inside()
_pools: Final[dict[tuple[int, int], ThreadPoolExecutor]] = {}


def _pool() -> ThreadPoolExecutor:
    """Return the worker threads of synchronous steps; the loop's own executor stays free for stores and name look-ups.

    A step in such a thread may drive another run, whose steps get other threads: else all might wait for one another.
    """
    key = forks(), _inside.depth  # a forked child has none of its parent's threads
    if (pool := _pools.get(key)) is None:
        inner = ThreadPoolExecutor(_THREADS, "durable-step", initializer=_enter, initargs=(_inside.depth + 1,))
        pool = _pools.setdefault(key, inner)
    return pool


def _enter(depth: int) -> None:
    _inside.depth = depth


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
    code = code_of(fn)
    return is_async(fn) or (code is not None and code.co_name == "<lambda>")


Outcome = tuple[Any, Exception | None, asyncio.CancelledError | None]
"""How an attempt ended: with a value or an error, and whether the caller was cancelled while a thread was waited for."""


async def invoke(context: StepContext, fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> Outcome:
    """Call `fn` once, as the step of `context`. Raises only what ends a program: a cancellation, KeyboardInterrupt, SystemExit.

    A thread can't be cancelled: when the caller is cancelled after it began, it is waited for, and the cancellation is
    returned beside the outcome, to be raised once that is recorded.
    """
    token = running.set(context)
    try:
        if is_async(fn):
            if timeout is None:
                return await fn(*args), None, None
            async with asyncio.timeout(timeout):
                return await fn(*args), None, None
        outcome = await _in_thread(fn, args)
        value, _, cancelled = outcome
        if not isawaitable(value):
            return outcome
        if cancelled is not None:
            if iscoroutine(value):
                value.close()
            raise cancelled
        async with asyncio.timeout(timeout):
            return await value, None, None
    except Exception as error:
        return None, error, None
    finally:
        context.end()
        running.reset(token)


async def _in_thread(fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    queued = _pool().submit(copy_context().run, _called, fn, args)
    call = asyncio.wrap_future(queued)
    cancelled = await finished(call, unless=queued.cancel)
    value, error = call.result()
    if error is not None and not isinstance(error, Exception):
        raise error
    return value, error, cancelled


def _called(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Return what `fn` raised instead of raising it: a future refuses to carry StopIteration, and would never be done."""
    try:
        return fn(*args), None
    except BaseException as error:
        return None, error


def is_nested(error: Exception) -> bool:
    """Tell whether a step was started inside the function that raised `error`, perhaps by a task group of it."""
    return isinstance(error, NestedStep) or (isinstance(error, ExceptionGroup) and error.subgroup(NestedStep) is not None)
