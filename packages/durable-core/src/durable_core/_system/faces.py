"""The connection between the blocking and the asynchronous library."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, TypeVar, overload

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


class Blocking(Protocol[A_co]):
    """A store or a flow of `durable_core.sync`, which wraps an asynchronous one."""

    @property
    def __durable_async__(self) -> A_co:
        """The wrapped asynchronous object."""


@overload
def asynchronous(given: Blocking[A]) -> A: ...
@overload
def asynchronous(given: A) -> A: ...
def asynchronous(given: Any) -> Any:
    """Return the asynchronous store or flow of a blocking one. Other objects are returned as they are."""
    return getattr(given, "__durable_async__", given)


class Home(NamedTuple):
    """The event loop to which a run and its store belong, and the process of that loop."""

    loop: AbstractEventLoop
    pid: int


class Place(NamedTuple):
    """A line of the user's code."""

    filename: str
    lineno: int
    module: str
    registry: dict[Any, int]
    """The warnings that were shown in the module."""


asked_at: Final[ContextVar[Place | None]] = ContextVar("durable_asked_at", default=None)
"""The line that made a blocking call, which runs in another thread."""
in_stores_thread: Final[ContextVar[bool]] = ContextVar("durable_in_stores_thread", default=False)
"""True while a store's own thread calls a function, which must not wait for that store."""
