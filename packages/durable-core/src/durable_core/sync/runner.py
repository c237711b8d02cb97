"""The runner for programs without asyncio: the methods of the asynchronous runner, as calls that block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from copy import copy
from datetime import datetime, timedelta
from inspect import isawaitable, iscoroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, TypeVarTuple, Unpack, overload

from durable_core import context
from durable_core._running.call import ANNOTATED
from durable_core._running.first import first
from durable_core._system.faces import asynchronous
from durable_core._waiting.approval import Decision
from durable_core.options import MapOptions, RunnerOptions, StepOptions
from durable_core.record import StepRecord
from durable_core.runner import Runner as AsyncRunner

from ._loop import Function, call, in_new_thread, leave
from .store import AnyStore, Store, home_of

if TYPE_CHECKING:
    from durable_core.flow import Flow as AsyncFlow

    from .flow import Flow

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Ts = TypeVarTuple("Ts")


class Runner:
    """Runs the steps of one run, each once, like `durable_core.Runner` and with the same options. Each call blocks.

    `with Runner(store, run_id) as runner:` holds the run's lock. The store is a blocking store, or an asynchronous store that
    serves any event loop. Several threads may share a runner.

    A plain function of a step is called in the thread that called `step`, so it can use what belongs to that thread, such as
    Django's connections. A plain function of a `map` is called in worker threads. An `async def` function runs on the library's
    event loop, in a thread of its own. Handlers of events are called there too.

    Ctrl-C, or any other exception that is raised in a waiting thread, cancels what it waits for; the log stays correct. A call
    raises `DurableError` if an event loop runs in its thread, because it would block that loop.
    """

    def __init__(self, store: AnyStore, run_id: str, **options: Unpack[RunnerOptions]) -> None:
        self._runner = AsyncRunner(asynchronous(store), run_id, **options)
        self._runner._run.home = home_of(store)

    @classmethod
    def _of(cls, runner: AsyncRunner) -> Self:
        """Return the blocking face of a runner."""
        face = cls.__new__(cls)
        face._runner = runner
        return face

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._runner.run_id

    @property
    def store(self) -> Store:
        """The store, with methods that block."""
        return Store._of(self._runner.store, self._runner._run.home)

    def __repr__(self) -> str:
        return f"durable_core.sync.{self._runner!r}"

    def _call(self, ask: Callable[[AsyncRunner], Coroutine[Any, Any, T]]) -> T:
        return call(lambda asker: ask(self._runner._waited_for_in(asker)), self._runner._run.home)

    def __enter__(self) -> Self:
        lock = self._runner._run.lock
        held = lock.is_held
        try:
            self._call(lambda runner: runner.__aenter__())
        except BaseException:
            if lock.is_held and not held:  # interrupted when the lock was taken just now
                self.__exit__(KeyboardInterrupt, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        leave(lambda _: self._runner.__aexit__(kind, error, trace), self._runner._run.home)

    @overload
    def step(self, step_id: str, fn: Callable[..., Any], *args: Any, returns: None, **options: Unpack[StepOptions]) -> None: ...
    @overload
    def step(self, step_id: str, fn: Callable[..., Any], *args: Any, returns: type[T], **options: Unpack[StepOptions]) -> T: ...
    @overload
    def step(self, step_id: str, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts, **options: Unpack[StepOptions]) -> T: ...
    @overload
    def step(self, step_id: str, fn: Callable[[Unpack[Ts]], T], *args: *Ts, **options: Unpack[StepOptions]) -> T: ...
    @overload
    def step(self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any, **options: Unpack[StepOptions]) -> Any: ...
    def step(  # type: ignore[misc]  # mypy doesn't match `*args: *Ts` with `*args: Any`
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any = ANNOTATED, **options: Any
    ) -> Any:
        """Call `fn(*args)` once and record its outcome under `step_id`; return the recorded value, now and on every later run.

        A plain `fn` is called in this thread, an `async def` on the library's event loop. Nothing is recorded if an interrupt
        stops `fn`. Raises what `durable_core.Runner.step` raises.
        """
        return self._call(lambda runner: runner.step(step_id, fn, *args, returns=returns, **options))

    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: None, **options: Unpack[StepOptions]
    ) -> None: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., Awaitable[T]], *args: Any, returns: Any = ..., **options: Unpack[StepOptions]
    ) -> T: ...
    @overload
    def transaction(
        self, step_id: str, fn: Callable[..., T], *args: Any, returns: Any = ..., **options: Unpack[StepOptions]
    ) -> T: ...
    def transaction(self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any = ANNOTATED, **options: Any) -> Any:
        """Call `fn(connection, *args)` in a transaction of the store that also contains the step's record: exactly once.

        With durable-postgres `fn` is async and runs on the library's event loop; with durable-sqlite it is a plain function and
        is called in the store's own thread, where calls of durable_core.sync raise `DurableError`. Everything else is as in
        `durable_core.Runner.transaction`.
        """
        return self._call(lambda runner: runner.transaction(step_id, fn, *args, returns=returns, **options))

    def until(
        self,
        step_id: str,
        check: Callable[..., Any],
        *args: Any,
        every: float | timedelta,
        timeout: float | timedelta | None = None,
        returns: Any = ANNOTATED,
        **options: Any,
    ) -> Any:
        """Call `check` every `every` seconds until it returns something true; record and return that.

        A plain `check` is called in this thread. Everything else is as in `durable_core.Runner.until`.
        """
        return self._call(
            lambda runner: runner.until(step_id, check, *args, every=every, timeout=timeout, returns=returns, **options)
        )

    def sleep(self, step_id: str, duration: float | timedelta | datetime, *, name: str | None = None) -> None:
        """Wait for `duration`, in seconds or as a timedelta, counted from the first call; or until an aware datetime.

        The wake-up time is recorded, and every later run uses it. Raises `RunSuspended` after `wait_limit` seconds.
        """
        self._call(lambda runner: runner.sleep(step_id, duration, name=name))

    def approval(
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
        """Show something to people and wait for their decision, given with `control.approve` or `reject`.

        One rejection decides, and so do `quorum` different people who approve the same value. `approvers` are the names of the
        people who may decide. Everything else is as in `durable_core.Runner.approval`.
        """
        options: Any = {"quorum": quorum, "approvers": approvers, "on_timeout": on_timeout, "name": name}
        return self._call(lambda runner: runner.approval(step_id, show, timeout=timeout, **options))

    @overload
    def event(
        self, step_id: str, *, returns: type[T], timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> T: ...
    @overload
    def event(
        self, step_id: str, *, returns: Any = Any, timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> Any: ...
    def event(
        self, step_id: str, *, returns: Any = Any, timeout: float | timedelta | datetime | None = None, name: str | None = None
    ) -> Any:
        """Wait for a value sent with `control.send`, even earlier than this call; return it as `returns`.

        If `timeout` passes first, raises `StepFailed`, whose error matches `TimeoutError`. Raises `RunSuspended` after
        `wait_limit` seconds, and `StepDrift` if the value that was sent can't be decoded as `returns`.
        """
        return self._call(lambda runner: runner.event(step_id, returns=returns, timeout=timeout, name=name))

    @overload
    def flow(self, step_id: str, flow: Flow[..., Any] | AsyncFlow[..., Any], /, *, wait: Literal[False], **input: Any) -> str: ...
    @overload
    def flow(self, step_id: str, flow: Flow[P, T] | AsyncFlow[P, T], /, *args: P.args, **input: P.kwargs) -> T: ...
    def flow(  # type: ignore[misc]  # `wait` is no input, which the types of P can't say
        self, step_id: str, flow: Any, /, *args: Any, wait: bool = True, **input: Any
    ) -> Any:
        """Run another flow as a child, and return its value. With `wait=False`, start it and return its run id at once.

        The flow may be blocking or asynchronous. The function of a blocking flow is called in a thread of its own. Raises what
        `durable_core.Runner.flow` raises.
        """
        return self._call(lambda runner: runner.flow(step_id, flow, *args, wait=wait, **input))

    def result(self, step_id: str, child: str, *, returns: Any = Any, name: str | None = None) -> Any:
        """Wait for the end of a child that `flow(…, wait=False)` of this run started, and return its value as `returns`.

        Raises `StepFailed` if the child failed or was cancelled, `ValueError` for a run id that no such call returned, and
        `RunSuspended` after `wait_limit` seconds.
        """
        return self._call(lambda runner: runner.result(step_id, child, returns=returns, name=name))

    def first(self, step_id: str, /, **contenders: Callable[[], T]) -> tuple[str, T]:
        """Let contenders race; return the name and the value of the first that succeeds, now and on every later run.

        A contender is a plain function without arguments, `rail=lambda: runner.step("rail", ask, "rail")`. It is called in a
        thread of its own. When a contender has lost, its current blocking call raises `CancelledError`, and so does every later
        one. Everything else is as in `durable_core.Runner.first`.
        """

        def racing(runner: AsyncRunner) -> Coroutine[Any, Any, tuple[str, Any]]:
            return first(runner._run, runner._scoped(step_id), contenders, _contend)

        return self._call(racing)

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
    ) -> list[None]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        returns: type[T],
        **options: Unpack[MapOptions[Item]],
    ) -> list[T]: ...
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
    ) -> list[T | None]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[Item], Awaitable[T]], items: Iterable[Item], **options: Unpack[MapOptions[Item]]
    ) -> list[T]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        tolerate: int,
        **options: Unpack[MapOptions[Item]],
    ) -> list[T | None]: ...
    @overload
    def map(
        self, step_id: str, fn: Callable[[Item], T], items: Iterable[Item], **options: Unpack[MapOptions[Item]]
    ) -> list[T]: ...
    @overload
    def map(
        self,
        step_id: str,
        fn: Callable[[Item], T],
        items: Iterable[Item],
        *,
        tolerate: int,
        **options: Unpack[MapOptions[Item]],
    ) -> list[T | None]: ...
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
    ) -> list[Any]: ...
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
    ) -> list[Any]:
        """Call `fn(item)` once for each item, at most `limit` at a time; return the values in the order of the items.

        A plain `fn` is called in worker threads. Everything else is as in `durable_core.Runner.map`.
        """
        how: Any = {"key": key, "limit": limit, "tolerate": tolerate, "returns": returns, **options}
        return self._call(lambda runner: runner.map(step_id, fn, items, **how))

    def publish(self, step_id: str, value: object) -> None:
        """Report progress: append `value` as the next entry of `step_id`.

        Everything else is as in `durable_core.Runner.publish`.
        """
        self._call(lambda runner: runner.publish(step_id, value))

    def scope(self, name: str) -> Self:
        """Return this runner with a prefix for all ids: the step `ask` in the scope `triage` is the run's step `triage/ask`.

        Scopes nest. Raises `ValueError` for a name that contains a "/" or begins with "$".
        """
        scoped = copy(self)
        scoped._runner = self._runner.scope(name)
        return scoped

    @property
    def prefix(self) -> str:
        """What the ids of this scope begin with, such as `triage/`; empty outside of scopes."""
        return self._runner.prefix

    def recorded(self, step_id: str) -> StepRecord | None:
        """Return the newest entry of a step that this runner knows, or None, without asking the store."""
        return self._runner.recorded(step_id)

    def history(self) -> Sequence[StepRecord]:
        """Read all entries of the run from the store, in the order in which they were appended."""
        return self._call(lambda runner: runner.history())

    def reset(self) -> None:
        """Clear the run, children first, so that every step and every child runs again.

        Takes the locks of the run and its children. Raises `RunBusy` if another runner holds one of them, and `DurableError`
        while a step of this runner is running.
        """
        self._call(lambda runner: runner.reset())


def _contend(fn: Callable[[], Any]) -> Awaitable[Any]:
    """Call a contender in a thread of its own."""

    def contend() -> Any:
        if isawaitable(value := fn()):
            if iscoroutine(value):
                value.close()
            raise TypeError(f"a contender of durable_core.sync must be a plain, blocking function, but {fn!r} returned {value!r}")
        return value

    return Function().outcome(in_new_thread, contend)


def current_runner() -> Runner:
    """Return the blocking runner whose flow or step is running here.

    Raises `DurableError` outside both. Inside a step, only read from it: a step can't start another step.
    """
    return Runner._of(context.current_runner())
