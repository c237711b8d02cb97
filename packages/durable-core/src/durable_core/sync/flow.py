"""Flows whose functions are plain functions, and blocking calls for flows that are written with asyncio."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import update_wrapper, wraps
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, Unpack, overload

from durable_core._running.ending import behind
from durable_core._system.faces import asynchronous
from durable_core.context import flow_of
from durable_core.flow import Flow as AsyncFlow
from durable_core.flow import flow as async_flow
from durable_core.flow import name_of
from durable_core.options import FlowOptions
from durable_core.record import StepRecord
from durable_core.runner import Runner as AsyncRunner

from ._loop import Function, Send, call, in_new_thread
from .runner import Runner
from .store import AnyStore, home_of

_NOT_PLAIN: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)

P = ParamSpec("P")
T = TypeVar("T")


class Flow(Generic[P, T]):
    """A flow function that blocks. Call it with your own runner, or let `run` make one and record how the run ends.

    A worker runs it like any flow, and calls its function in a thread of its own.
    """

    def __init__(self, flow: AsyncFlow[P, T], fn: Callable[..., T] | None) -> None:
        self.name: Final = flow.name
        self._flow: Final = flow
        self._fn: Final = fn
        update_wrapper(self, fn or flow, updated=())

    @classmethod
    def _plain(cls, fn: Callable[..., T], name: str | None, options: FlowOptions) -> Flow[P, T]:
        if not callable(fn) or isinstance(fn, AsyncFlow | Flow) or any(is_kind(fn) for is_kind in _NOT_PLAIN):
            raise TypeError(
                f"a flow of durable_core.sync must be a plain function (runner, **input), not {fn!r}; to an async function, apply"
                " durable_core.flow first, and this to the result"
            )
        return cls(AsyncFlow(_driving(fn, in_new_thread), name or name_of(fn), options), fn)

    @property
    def __durable_async__(self) -> AsyncFlow[P, T]:
        return self._flow

    def __repr__(self) -> str:
        return f"<blocking flow {self.name!r}>"

    def __get__(self, instance: object, owner: type | None = None) -> Flow[Any, T]:
        """Return the flow as a method of `instance`, as functions do."""
        if instance is None:
            return self
        if self._fn is None:
            return Flow(self._flow.__get__(instance, owner), None)
        return Flow._plain(self._fn.__get__(instance), self.name, self._flow._options)

    def __call__(self, runner: Runner, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(runner, Runner):
            raise TypeError(
                f"flow {self.name!r} must be called with a Runner of durable_core.sync, not {runner!r}; or write"
                " .run(store, run_id=…)"
            )
        if self._fn is None:
            return runner._call(lambda inner: self._flow._called(inner, *args, **kwargs))
        with flow_of(runner._runner):
            return self._fn(runner, *args, **kwargs)

    def options(self, **options: Unpack[FlowOptions]) -> Flow[P, T]:
        """Return the same flow with other options, such as `onboard.options(wait_limit=0)`. Options that you leave out stay."""
        if self._fn is None:
            return Flow(self._flow.options(**options), None)
        return Flow._plain(self._fn, self.name, {**self._flow._options, **options})

    def run(self, store: AnyStore, run_id: str, *args: P.args, **input: P.kwargs) -> T:
        """Run the flow as `run_id`, resume it, or return its recorded outcome. Its function is called in this thread.

        The run's lock is held meanwhile. Raises what `durable_core.Flow.run` raises.
        """

        def running(send: Send) -> AsyncFlow[P, T]:
            return self._flow if self._fn is None else self._flow._called_by(_driving(self._fn, send))

        return call(lambda asker: running(asker.send).run(asynchronous(store), run_id, *args, **input), home_of(store))

    def start(
        self,
        store: AnyStore,
        run_id: str,
        at: datetime | timedelta | float | None = None,
        connection: Any = None,
        *args: P.args,
        **input: P.kwargs,
    ) -> StepRecord:
        """Start a run without running it here: record its input and return the entry of `$flow` that holds it.

        `run` takes it up. A worker does so no earlier than `at`. The same id and input again change nothing. `connection` is a
        connection of the store's driver, as for `durable_core.Flow.start`.
        """
        return call(
            lambda _: self._flow.start(asynchronous(store), run_id, at, connection, *args, **input),
            home_of(store),
        )


def _driving(fn: Callable[..., T], send: Send) -> Callable[..., Awaitable[T]]:
    """Return an async function for a flow, which calls the plain function in a thread."""

    @wraps(fn)
    async def drive(runner: AsyncRunner, /, *args: Any, **input: Any) -> T:
        def called() -> T:
            runner._run.outside |= frozenset(map(id, behind(sys.exception())))
            return fn(Runner._of(runner), *args, **input)

        # What is only replayed records nothing: a function that hangs there keeps no loop from being closed.
        return await Function().outcome(send, called, abandons=runner._run.replay is not None)

    return drive


@overload
def flow(fn: AsyncFlow[P, T], /) -> Flow[P, T]: ...
@overload
def flow(fn: Callable[Concatenate[Runner, P], T], /) -> Flow[P, T]: ...
@overload
def flow(
    *, name: str | None = None, **options: Unpack[FlowOptions]
) -> Callable[[Callable[Concatenate[Runner, P], T]], Flow[P, T]]: ...
def flow(fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a flow from a plain function `(runner, **input)`, with the options of `durable_core.flow`.

    If `onboard` is a flow that is written with asyncio, `flow(onboard)` is the same flow with `run` and `start` that block.
    """
    if isinstance(fn, AsyncFlow):
        return Flow(fn, None)
    if fn is not None:
        return Flow._plain(fn, name, {})
    async_flow(name=name, **options)  # checks the options now
    return lambda function: Flow._plain(function, name, options)  # type: ignore[arg-type]  # checked when a runner is made
