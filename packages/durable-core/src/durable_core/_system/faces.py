"""What blocking faces and the asynchronous library know of each other."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, TypeVar, overload

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


class Blocking(Protocol[A_co]):
    """A store or a flow of `durable_core.sync`, which stands before an asynchronous one."""

    @property
    def __durable_async__(self) -> A_co:
        """The asynchronous one."""


@overload
def asynchronous(given: Blocking[A]) -> A: ...
@overload
def asynchronous(given: A) -> A: ...
def asynchronous(given: Any) -> Any:
    """Return the asynchronous store or flow of a blocking one; what isn't blocking is returned as it is."""
    return getattr(given, "__durable_async__", given)


class Home(NamedTuple):
    """The event loop that a run and its store belong to, and the process that has it."""

    loop: AbstractEventLoop
    pid: int


class Place(NamedTuple):
    """A line of somebody's code."""

    filename: str
    lineno: int
    module: str
    registry: dict[Any, int]
    """The warnings that were shown in the module."""


asked_at: Final[ContextVar[Place | None]] = ContextVar("durable_asked_at", default=None)
"""The line that made a blocking call, whose work is done in another thread."""
in_stores_thread: Final[ContextVar[bool]] = ContextVar("durable_in_stores_thread", default=False)
"""Whether a store's own thread calls a function here, which may not wait for that store."""
