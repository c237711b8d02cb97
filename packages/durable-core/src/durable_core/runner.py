"""The runner: each step runs once, and later calls return its recorded result."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from copy import copy
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar, TypeVarTuple, Unpack, overload
from weakref import ref

from ._log.clearing import hold_children
from ._running.attempt import Caller
from ._running.call import ANNOTATED, is_async, may_be_awaited, prepare, use_id
from ._running.ending import only_suspends
from ._running.first import first
from ._running.many import prepare_map, run_map
from ._running.outcome import value_or_failure
from ._running.progress import publish
from ._running.race import Wait
from ._running.run import Run
from ._running.step import run_step
from ._running.transaction import NOT_AWAITED, committing_in, committing_in_thread
from ._running.until import asking_again
from ._system.ids import check_id, check_name, check_own_id
from ._values.codec import Codec
from ._values.returns import codec_for
from ._waiting.approval import Decision, Request
from ._waiting.child import call_child, result_of
from ._waiting.wait import moment, wait
from .clock import Clock, SystemClock
from .events import OnEvent, check_handlers
from .options import Delay, MapOptions, Policy, RetryOn, StepOptions, duration
from .record import StepRecord
from .store import Store, check_store, transact_of, transaction_of

if TYPE_CHECKING:
    from .flow import Flow
    from .sync import Flow as BlockingFlow

_STOPPED: Final = (CancelledError, KeyboardInterrupt, SystemExit)

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Ts = TypeVarTuple("Ts")


class Runner:
    """Runs the steps of one run, each once, and keeps their results in the log of `store`.

    `async with Runner(store, run_id) as runner:` holds the run's lock, so that no second runner works on the run. If another
    runner holds the lock, entering waits up to `lock_wait` seconds and then raises `RunBusy`. Without `async with`, and on a
    store without locks, two runners may both call a step's function. One outcome is recorded, and both get it.

    `max_attempts`, `retry_delay` and `retry_on` apply to every step that doesn't set its own: the number of all attempts, the
    seconds between them (a number, a timedelta, or a function of the attempt such as `exponential(0.5)`), and which errors are
    worth another attempt (exception types or a predicate). `on_event`, one handler or several, is called with each `StepEvent`;
    an awaitable that it returns is awaited. `on_drift` says whether a step that is called with arguments other than the recorded
    ones is a warning or an error. A wait that lasts longer than `wait_limit` seconds in this process raises `RunSuspended`; None
    waits forever, 0 doesn't wait. If the store fails, the runner tries for `store_timeout` seconds to record an outcome. `clock`
    replaces the machine's clock in tests.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        max_attempts: int = 1,
        retry_delay: Delay = 0.0,
        retry_on: RetryOn = Exception,
        on_event: OnEvent | None = None,
        on_drift: Literal["warn", "raise"] = "warn",
        wait_limit: float | timedelta | None = None,
        lock_wait: float | timedelta = 0.0,
        store_timeout: float | timedelta = 30.0,
        clock: Clock | None = None,
    ) -> None:
        run_id = check_own_id("run_id", run_id)
        check_store(store)
        check_handlers(on_event)
        if on_drift not in ("warn", "raise"):
            raise ValueError(f"on_drift must be 'warn' or 'raise', not {on_drift!r}")
        self.run_id: Final = run_id
        self.store: Final = store
        self._policy: Final = Policy().override({"max_attempts": max_attempts, "retry_delay": retry_delay, "retry_on": retry_on})
        self._run: Final = Run(
            store,
            run_id,
            clock=clock or SystemClock(),
            lock_wait=duration("lock_wait", lock_wait),
            store_timeout=duration("store_timeout", store_timeout, zero=False),
            wait_limit=None if wait_limit is None else duration("wait_limit", wait_limit),
            on_event=on_event,
            on_drift=on_drift,
        )
        self._run.face = ref(self)
        self._prefix = ""
        self._thread: Caller | None = None
        self._outer: Runner | None = None  # kept, for `current_runner` finds it for as long as anybody has it

    def __repr__(self) -> str:
        scope = f", scope={self._prefix[:-1]!r}" if self._prefix else ""
        return f"Runner({self.store!r}, run_id={self.run_id!r}{scope})"

    async def __aenter__(self) -> Self:
        await self._run.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._run.leave(cancel=kind is not None and issubclass(kind, _STOPPED))
        # A task group wraps it, and gather may have swallowed it: a suspension is told as what it is.
        if (suspended := self._run.suspended) is not None and suspended is not error and only_suspends(error):
            raise suspended from None

    @overload
    def step(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: None, **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: type[T], **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts, **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[[Unpack[Ts]], T], *args: *Ts, **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any, **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, Any]: ...
    def step(  # type: ignore[misc]  # mypy doesn't match `*args: *Ts` with `*args: Any`
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: Any = ANNOTATED,
        **options: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Call `fn(*args)` once and record its outcome under `step_id`; return the recorded value, now and on every later run.

        `fn` may be async or not. A synchronous function runs in a worker thread; an awaitable that it returns is awaited. The
        value's type is `returns`, or else the return annotation. `returns=None` records no value. The other options are those of
        `StepOptions`: `name` is what people read, the others replace the runner's.

        When this returns, the outcome is recorded, as durably as the store can, and the value is the recorded one, decoded.
        Raises `StepFailed` when no attempt is left, now and on every replay; `ResultNotRecorded` if the store took no outcome;
        `StepReused` if the id was used for another call on this runner; `StepDrift` if the record doesn't fit the code;
        `LockLost`, before anything runs, if another runner may have the run.
        """
        if self._prefix:
            step_id = self._scoped(step_id)
        return run_step(self._run, prepare(self._run, step_id, fn, args, returns, self._policy, options, self._thread))

    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: None, **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., Awaitable[T]], *args: Any, returns: Any = ..., **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., T], *args: Any, returns: Any = ..., **options: Unpack[StepOptions]
    ) -> Coroutine[Any, Any, T]: ...
    def transaction(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: Any = ANNOTATED,
        **options: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Call `fn(connection, *args)` in a transaction of the store that also contains the step's record: exactly once.

        Both are committed together, or neither is. If two processes do it at once, one commits. The other's work is rolled
        back, and it gets the winner's value. After a serialisation failure or a deadlock the whole transaction runs again, which
        doesn't count as an attempt. `fn` must not commit or roll back. Options and errors are those of `step`. Raises `TypeError`
        on a store without transactions. durable-postgres has them, where `fn` is async, and durable-sqlite, where `fn` is a plain
        function and is called in the store's own thread.
        """
        in_thread, store = transact_of(self.store), transaction_of(self.store)
        if options.get("at_most_once"):
            raise TypeError("leave out at_most_once=: a transaction always happens exactly once")
        if in_thread is not None:
            if callable(fn) and is_async(fn):
                raise TypeError(f"fn of transaction {step_id!r} is async, {NOT_AWAITED}")
            once = committing_in_thread(in_thread)
        elif store is not None:
            if callable(fn) and not may_be_awaited(fn):
                raise TypeError(
                    f"fn of transaction {step_id!r} must be async, not {fn!r}: its connection belongs to the event loop"
                )
            once = committing_in(store)
        else:
            raise TypeError(
                f"{self.store!r} has no transactions: use runner.step, or a store that has them, such as durable-sqlite"
            )
        call = prepare(self._run, self._scoped(step_id), fn, args, returns, self._policy, {**options})
        return run_step(self._run, call, once)

    def until(
        self,
        step_id: str,
        check: Callable[..., Any],
        *args: Any,
        every: float | timedelta,
        timeout: float | timedelta | None = None,
        returns: Any = ANNOTATED,
        **options: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Call `check` every `every` seconds until it returns something true; record and return that.

        A pause that is longer than `wait_limit` is recorded and suspends the run, as a wait does. A shorter one leaves no entry.
        `timeout` seconds after the first call the step fails with `StepFailed`, whose error matches `TimeoutError`. A check that
        raises counts as an attempt, as in a step. The other options and errors are those of `step`; here `timeout` limits all
        calls together, not one attempt.
        """
        seconds = duration("every", every, zero=False)
        limit = None if timeout is None else duration("timeout", timeout, zero=False)
        if returns is None:
            raise TypeError(f"until {step_id!r} needs the value that check returns: leave out returns=None")
        call = prepare(self._run, self._scoped(step_id), check, args, returns, self._policy, options, self._thread)
        return run_step(self._run, call, asking_again(seconds, limit))

    async def sleep(self, step_id: str, duration: float | timedelta | datetime, *, name: str | None = None) -> None:
        """Wait for `duration`, in seconds or as a timedelta, counted from the first call; or until an aware datetime.

        The wake-up time is recorded, and every later run uses it. Raises `RunSuspended` after `wait_limit` seconds.
        """
        step_id = self._scoped(step_id)
        until = moment(self._run.clock, "duration", duration)
        await self._wait(Wait(step_id, name or step_id, "sleep", until), ("sleep", duration), None)

    async def approval(
        self,
        step_id: str,
        show: object = None,
        *,
        timeout: float | timedelta | datetime | None = None,
        quorum: int = 1,
        approvers: Iterable[str] | None = None,
        on_timeout: Literal["fail", "reject"] = "fail",
        name: str | None = None,
    ) -> Decision:
        """Show something to people and wait for their decision, given with `durable_core.control.approve` or `reject`.

        One rejection decides, and so do `quorum` different people who approve the same value. `approvers` are the names of the
        people who may decide; None means anyone. Names are recorded, not authenticated. A decision is valid only for what was
        shown: if this is called again with another `show`, it raises `StepDrift`. If `timeout` passes first, it raises
        `StepFailed`, whose error matches `TimeoutError`; with `on_timeout="reject"` that is a rejection by `$deadline` instead.
        Raises `RunSuspended` after `wait_limit` seconds.
        """
        step_id = self._scoped(step_id)
        request = Request.make(step_id, show, quorum, approvers, on_timeout)
        until = None if timeout is None else moment(self._run.clock, "timeout", timeout)
        asked = Wait(step_id, name or step_id, "approval", until, request.note(), request.fingerprint)
        decision: Decision = await self._wait(asked, ("approval", request.fingerprint), codec_for(Decision))
        return decision

    @overload
    async def event(
        self, step_id: str, *, returns: type[T], timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> T: ...
    @overload
    async def event(
        self, step_id: str, *, returns: Any = Any, timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> Any: ...
    async def event(
        self, step_id: str, *, returns: Any = Any, timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> Any:
        """Wait for a value sent with `durable_core.control.send`, even earlier than this call; return it as `returns`.

        If `timeout` passes first, raises `StepFailed`, whose error matches `TimeoutError`. Raises `RunSuspended` after
        `wait_limit` seconds, and `StepDrift` if the value that was sent can't be decoded as `returns`.
        """
        step_id = self._scoped(step_id)
        codec = None if returns is None else codec_for(returns)
        until = None if timeout is None else moment(self._run.clock, "timeout", timeout)
        return await self._wait(Wait(step_id, name or step_id, "event", until), ("event",), codec)

    @overload
    def flow(
        self, step_id: str, flow: Flow[..., Any] | BlockingFlow[..., Any], /, *, wait: Literal[False], **input: Any
    ) -> Coroutine[Any, Any, str]: ...
    @overload
    def flow(
        self, step_id: str, flow: Flow[P, T] | BlockingFlow[P, T], /, *args: P.args, **input: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    async def flow(  # type: ignore[misc]  # `wait` is no input, which the types of P can't say
        self, step_id: str, flow: Any, /, *args: Any, wait: bool = True, **input: Any
    ) -> Any:
        """Run another flow as a child, and return its value. With `wait=False`, start it and return its run id at once.

        The child is a run of its own, `<run id>/<step id>`, under its own lock. Its outcome is recorded in both logs. While it
        waits, this run waits. Its input is recorded with this step and used on every repetition. Raises `StepFailed` if the child
        failed or was cancelled, `StepDrift` for an id that was used for another flow, `TypeError` for input that the flow doesn't
        accept. If the child crashed or is parked, raises `ChildStopped`, which is not an `Exception`: this run then crashes or is
        parked too. If this run is cancelled, so is the child, and it ends first.
        """
        if args:
            raise TypeError(f"flow {step_id!r} takes its input by name")
        step_id = self._scoped(check_name("step_id of a child", step_id))
        return await call_child(self._run, step_id, flow, input, waits=wait)

    async def result(self, step_id: str, child: str, *, returns: Any = Any, name: str | None = None) -> Any:
        """Wait for the end of a child that `flow(…, wait=False)` of this run started, and return its value as `returns`.

        Raises `StepFailed` if the child failed or was cancelled, `ValueError` for a run id that no such call returned, and
        `RunSuspended` after `wait_limit` seconds.
        """
        codec = None if returns is None else codec_for(returns)
        step_id = self._scoped(step_id)
        return await result_of(self._run, step_id, name or step_id, child, codec)

    def first(self, step_id: str, /, **contenders: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, tuple[str, T]]:
        """Let contenders race; return the name and the value of the first that succeeds, now and on every later run.

        A contender is a function without arguments that returns an awaitable: `rail=lambda: runner.step("rail", ask)`. One
        entry under `step_id` records the winner's name. On a replay only the winner is called, and its steps replay.

        The others are cancelled. One that runs in a thread can't be cancelled: `first` doesn't wait for it, its outcome is
        recorded, and the runner waits for it when the runner is left. The waits of the others are withdrawn: an approval is no
        longer pending. A step that was cancelled may have had its effect, like any interrupted step: undo after `first` what must
        not stay.

        A contender loses if it raises `StepFailed` or `SomeFailed`. Anything else that it raises is raised here, and nothing is
        recorded. If all lose, that is recorded, and raised as the `StepFailed` of this id, with the error of the last one;
        `durable_core.control.retry` of this id retries what failed. Raises `RunSuspended` only if all remaining contenders wait.
        Before anything runs, raises `ValueError` without contenders, and `TypeError` for something that is not a function or
        returns no awaitable. Raises `StepReused` if the id was used for another call, and `StepDrift` if the recorded winner is
        none of the contenders.
        """
        return first(self._run, self._scoped(step_id), contenders)

    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        returns: None,
        tolerate: int = 0,
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[None]]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        returns: type[T],
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[T]]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        returns: type[T],
        tolerate: int,
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[T | None]]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[Item], Awaitable[T]], items: Iterable[Item], **options: Unpack[MapOptions[Item]]
    ) -> Coroutine[Any, Any, list[T]]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        tolerate: int,
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[T | None]]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[Item], T], items: Iterable[Item], **options: Unpack[MapOptions[Item]]
    ) -> Coroutine[Any, Any, list[T]]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], T],
        items: Iterable[Item],
        *,
        tolerate: int,
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[T | None]]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        returns: Any,
        tolerate: int = 0,
        **options: Unpack[MapOptions[Item]],
    ) -> Coroutine[Any, Any, list[Any]]: ...
    def map(
        self,
        step_id: str,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        key: Callable[[Any], str | int] | None = None,
        limit: int = 20,
        tolerate: int = 0,
        returns: Any = ANNOTATED,
        **options: Any,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Call `fn(item)` once for each item, at most `limit` at a time; return the values in the order of the items.

        Each item is its own step, `mail/<key>` for the map `mail`. `key` returns a text or a number that only this item has.
        Without it, items are numbered from 0, and must come in the same order on every run. Every item is tried. One entry under
        `step_id` records that all were tried; a replay reads that entry and doesn't call `fn`. The options are those of `step`.

        The values of up to `tolerate` failed items are None. If more items fail, that is recorded, and `SomeFailed` is raised
        with `.values` and `.failures` by key, now and on every replay. `durable_core.control.retry` of `step_id` retries the
        failed items. Before anything runs, raises `ValueError` for two items with one key, a `limit` below 1 or an id with a "/".
        Raises `StepReused` if the id was used for another call, and `StepDrift` for an item that a recorded map didn't have.
        """
        check_name("step_id of a map", step_id)
        step_id = self._scoped(step_id)
        call = prepare_map(self._run, step_id, fn, items, key, limit, tolerate, returns, self._policy, options)
        return run_map(self._run, call)

    async def publish(self, step_id: str, value: object) -> None:
        """Report progress: append `value`, JSON or a type that can be recorded, as the next entry of `step_id`.

        `durable_core.control.published` reads the newest entry, and `follow` all of them as they come. On a replay the n-th call
        of an id finds the n-th entry, and appends nothing. It also works in a cancelled run. Raises `UnrecordableValue` for a
        value that can't be recorded, `LockLost` if another runner may have the run, and `StoreError` if the store stays away.
        """
        await publish(self._run, self._scoped(step_id), value)

    def scope(self, name: str) -> Self:
        """Return this runner with a prefix for all ids: the step `ask` in the scope `triage` is the run's step `triage/ask`.

        Use it for a part of a flow that runs twice in one run. Scopes nest. The lock, the log and the options are those of this
        runner. Raises `ValueError` for a name that contains a "/" or begins with "$".
        """
        scoped = copy(self)
        scoped._outer = self
        scoped._prefix = f"{self._prefix}{check_name('scope', name)}/"
        return scoped

    @property
    def prefix(self) -> str:
        """What the ids of this scope begin with, such as `triage/`; empty outside of scopes."""
        return self._prefix

    def recorded(self, step_id: str) -> StepRecord | None:
        """Return the newest entry of a step that this runner knows, or None, without asking the store.

        The log is read when the runner is entered, or when its first step runs.
        """
        return self._run.log.latest(self._prefix + check_id("step_id", step_id))

    async def history(self) -> Sequence[StepRecord]:
        """Read all entries of the run from the store, in the order in which they were appended."""
        return await self.store.list(self.run_id)

    async def reset(self) -> None:
        """Clear the run, children first, so that every step and every child runs again.

        Takes the run's lock, unless this runner holds it, and the locks of its children. Raises `RunBusy` if another runner holds
        one of them, and `DurableError` while a step of this runner is running.
        """
        run = self._run
        run.refuse_reset()
        async with AsyncExitStack() as stack:
            if not run.lock.is_held:
                await stack.enter_async_context(run.lock.again())
            await stack.enter_async_context(run.loading)
            run.refuse_reset()  # what began while the lock was waited for
            children = await hold_children(self.store, self.run_id, stack, ended=False)
            run.forget()
            for run_id in (*(children or ()), self.run_id):
                await self.store.clear(run_id)

    def _waited_for_in(self, thread: Caller) -> Self:
        """Return this runner for a thread that waits for its steps, and calls their plain functions meanwhile."""
        runner = copy(self)
        runner._thread = thread
        return runner

    def _scoped(self, step_id: str) -> str:
        """Return the id in the run of what this scope calls `step_id`."""
        return self._prefix + check_own_id("step_id", step_id) if self._prefix else step_id

    async def _wait(self, asked: Wait, identity: object, codec: Codec[Any] | None) -> Any:
        use_id(self._run, asked.step_id, identity)
        with self._run.telling(asked.step_id):
            return value_or_failure(await wait(self._run, asked), codec)
