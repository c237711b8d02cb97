"""Acting on a run from outside: the functions of `durable_core.control`, as calls that block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from datetime import timedelta
from functools import update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, overload

from durable_core import control
from durable_core._system.faces import asynchronous
from durable_core.clock import Clock
from durable_core.control import RUN_STATES, RunState, RunStatus
from durable_core.store import Store as AsyncStore

from ._loop import call
from .store import AnyStore, home_of, iterate

__all__ = [
    "RUN_STATES",
    "RunState",
    "RunStatus",
    "approve",
    "cancel",
    "clear",
    "clear_ended",
    "copy",
    "follow",
    "fork",
    "looks",
    "pending",
    "published",
    "reject",
    "resolve",
    "result",
    "retry",
    "runs",
    "send",
    "send_failure",
    "status",
]

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(fn: Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[AnyStore, P], T]:
    """Make a function of the asynchronous one, for blocking stores too."""

    def blocking(store: AnyStore, *args: P.args, **kwargs: P.kwargs) -> T:
        return call(lambda _: fn(asynchronous(store), *args, **kwargs), home_of(store))

    update_wrapper(blocking, fn)
    return blocking  # type: ignore[return-value]  # callers may give the store by name, which no type can say here


def _iterating(
    fn: Callable[Concatenate[AsyncStore, P], AsyncIterator[T]],
) -> Callable[Concatenate[AnyStore, P], Generator[T, None, None]]:
    """Make a plain generator of the asynchronous one, for blocking stores too; it closes that when it is left."""

    def iterating(store: AnyStore, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return iterate(fn(asynchronous(store), *args, **kwargs), home_of(store))

    update_wrapper(iterating, fn)
    return iterating  # type: ignore[return-value]  # as above


approve: Final = _blocking(control.approve)
cancel: Final = _blocking(control.cancel)
clear: Final = _blocking(control.clear)
clear_ended: Final = _blocking(control.clear_ended)
follow: Final = _iterating(control.follow)
fork: Final = _blocking(control.fork)
looks: Final = _iterating(control.looks)
pending: Final = _iterating(control.pending)
published: Final = _blocking(control.published)
reject: Final = _blocking(control.reject)
resolve: Final = _blocking(control.resolve)
retry: Final = _blocking(control.retry)
runs: Final = _iterating(control.runs)
send: Final = _blocking(control.send)
send_failure: Final = _blocking(control.send_failure)
status: Final = _blocking(control.status)


def copy(store: AnyStore, run_id: str, to_store: AnyStore, *, dry_run: bool = False) -> int:
    """Copy a run and its children to another store, as `durable_core.control.copy` does; return how many entries they have."""
    return call(lambda _: control.copy(asynchronous(store), run_id, asynchronous(to_store), dry_run=dry_run), home_of(store))


@overload
def result(
    store: AnyStore, run_id: str, *, returns: type[T], timeout: float | timedelta | None = None, clock: Clock | None = None
) -> T: ...
@overload
def result(
    store: AnyStore, run_id: str, *, returns: Any = Any, timeout: float | timedelta | None = None, clock: Clock | None = None
) -> Any: ...
def result(
    store: AnyStore, run_id: str, *, returns: Any = Any, timeout: float | timedelta | None = None, clock: Clock | None = None
) -> Any:
    """Wait until a run's flow has ended, and return its value, or raise its failure, as `durable_core.control.result` does."""
    return call(
        lambda _: control.result(asynchronous(store), run_id, returns=returns, timeout=timeout, clock=clock), home_of(store)
    )
