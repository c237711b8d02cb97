"""What blocking faces and the asynchronous library know of each other."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, TypeVar

A_co = TypeVar("A_co", covariant=True)


class Blocking(Protocol[A_co]):
    """A store or a flow of `durable_core.sync`, which stands before an asynchronous one."""

    @property
    def __durable_async__(self) -> A_co:
        """The asynchronous one."""


def asynchronous(given: A_co | Blocking[A_co]) -> A_co:
    """Return the asynchronous store or flow of a blocking one; what isn't blocking is returned as it is."""
    found: Any = given
    return getattr(found, "__durable_async__", found)  # type: ignore[no-any-return]  # it is one or the other


class Place(NamedTuple):
    """A line of somebody's code."""

    filename: str
    lineno: int
    module: str
    registry: dict[Any, int]
    """The warnings that were shown in the module."""


asked_at: Final[ContextVar[Place | None]] = ContextVar("durable_asked_at", default=None)
"""The line that made a blocking call, whose work is done in another thread."""
