"""One attempt: calling a function once, on the loop or in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from inspect import isawaitable, iscoroutine
from typing import Any, Final, Protocol

import msgspec

from durable_core._system.waits import cancellations, finished
from durable_core.context import StepContext, running
from durable_core.errors import NestedStep

from .call import Call, check
from .race import in_thread
from .run import Run

_THREADS: Final = 40

Failure = Exception | asyncio.CancelledError
"""An exception that a function raised. A `CancelledError` that wasn't meant for the task is a failure like any other."""


class Outcome(msgspec.Struct):
    """The outcome of calling a function once."""

    value: Any = None
    error: Failure | None = None
    cancelled: asyncio.CancelledError | None = None
    """The caller's own cancellation, which is raised after a thread's outcome is recorded."""


class Caller(Protocol):
    """A thread in which a step's function can be called."""

    async def call(self, run: Run, call: Call, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        """Call `check` and then `fn` in the thread. The call can't be cancelled, so this waits for it."""

    def give(self) -> None:
        """Release the thread for calls that wait for one."""
        return


class Threads:
    """Worker threads for synchronous steps of one loop. Its own executor stays free for stores and name look-ups."""

    def __init__(self) -> None:
        self.free: Final = asyncio.Semaphore(_THREADS)
        self.pool: Final = ThreadPoolExecutor(_THREADS, "durable-step")


_threads: Final[dict[asyncio.AbstractEventLoop, Threads]] = {}


class Thread(Caller):
    """A worker thread for one call. A step takes it before it begins, so that it needn't wait after it has begun."""

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

    async def call(self, run: Run, call: Call, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        """Call `check` and then `fn` in the thread. The call can't be cancelled, so this waits for it."""
        try:
            future = asyncio.wrap_future(self._threads.pool.submit(copy_context().run, called, run, call, fn, args))
            with in_thread():
                cancelled = await finished(future)
            outcome = future.result()
        finally:
            self.give()
        outcome.cancelled = cancelled
        return outcome

    def give(self) -> None:
        """Release the thread, once."""
        if self._taken:
            self._taken = False
            self._threads.free.release()


async def thread_for(call: Call) -> Caller:
    """Return the call's thread, or wait until a worker thread is free, and take it."""
    return call.thread or await Thread.take()


def called(run: Run, call: Call, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    """Call `check` and then `fn`, and return the outcome."""
    check(run, call)
    try:  # a future can't hold StopIteration, and would never be done
        return Outcome(fn(*args))
    except (Exception, asyncio.CancelledError) as error:
        return _failed(error)


async def attempt(
    run: Run,
    call: Call,
    number: int,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    thread: Caller | None = None,
    timeout: float | None = None,
) -> Outcome:
    """Call `fn` once, as attempt `number` of the step: in `thread`, or on the loop if that is None.

    In a thread, everything is checked again just before; on the loop, the caller does that. Raises what these checks raise, and
    what ends a program: the caller's cancellation, KeyboardInterrupt, SystemExit.
    """
    if run.replay is not None:
        await run.replay.stop(run, call.step_id)
    context = StepContext(run.id, call.step_id, number, run, run.log.reopened.get(call.step_id, 0))
    token = running.set(context)
    task = run.running[call.step_id]
    before = cancellations(task)
    if fn is call.fn:  # and not the value with which it recovers
        run.driver.begins(context)
    try:
        awaitable: Any = None
        if thread is not None:
            outcome = await thread.call(run, call, fn, args)
            awaitable = outcome.value
            if not isawaitable(awaitable):
                return outcome
            if outcome.cancelled is not None:
                if iscoroutine(awaitable):
                    awaitable.close()
                raise outcome.cancelled
        try:
            if thread is None:
                awaitable = fn(*args)
            return Outcome(await awaitable if timeout is None else await _within(timeout, awaitable))
        except Exception as error:
            return _failed(error)
        except asyncio.CancelledError as error:
            if cancellations(task) > before:
                raise
            return Outcome(error=error)
    finally:
        context._active = False  # for tasks that outlive the function
        running.reset(token)


async def _within(timeout: float, awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(timeout) as limit:
        value = await awaitable
    if limit.expired():  # the function caught the cancellation, and returned
        raise TimeoutError(f"it took longer than its timeout of {timeout:g} s, and caught the cancellation")
    return value


def _failed(error: Failure) -> Outcome:
    """Return the failure, or raise it if a step was started inside the function, perhaps in its task group."""
    if isinstance(error, NestedStep) or (isinstance(error, ExceptionGroup) and error.subgroup(NestedStep) is not None):
        raise error
    return Outcome(error=error)
