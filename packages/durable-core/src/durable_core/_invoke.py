"""One attempt: calling a step's function, in a worker thread or on the loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from inspect import CO_COROUTINE, CO_ITERABLE_COROUTINE, isawaitable, iscoroutine
from types import CodeType
from typing import Any, Final

from ._await import finished
from .context import StepContext, running

_ASYNC: Final = CO_COROUTINE | CO_ITERABLE_COROUTINE
_THREADS: Final = 40


class _Threads:
    """The worker threads of synchronous steps; the loop's own executor stays free for stores and name look-ups."""

    def __init__(self) -> None:
        self.pool = self._new()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.pool = self._new()

    @staticmethod
    def _new() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="durable-step")


_threads: Final = _Threads()


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

    A thread can't be cancelled: when the caller is cancelled meanwhile, the thread is waited for, and the cancellation is
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
    call = asyncio.get_running_loop().run_in_executor(_threads.pool, copy_context().run, _called, fn, args)
    cancelled = await finished(call)
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
