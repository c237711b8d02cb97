"""Reads the lists of a store. Parts may be damaged, and there may be more than a page can show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from heapq import nsmallest
from typing import Any, Final, TypeVar

from durable_core.errors import CorruptLog, StoreError
from durable_core.store import Store, runs_of

T = TypeVar("T")

_FEW: Final = 2_000
_SECONDS: Final = 4.0
"""Seconds after which reading a long list stops. The page then says that there is more."""


async def has_many(store: Store, prefix: str) -> bool:
    """Return True if there are so many runs that the page shows those without a flow only on demand: they are in no index."""
    listing = runs_of(store)
    if listing is None:
        return True
    generator: Any = listing.runs(prefix)
    count = 0
    async with aclosing(generator):
        async for _ in generator:
            if (count := count + 1) > _FEW:
                return True
    return False


async def read(
    found: AsyncIterator[T], most: int, wants: Callable[[T], bool] = lambda _: True, *, first_by: Callable[[T], Any] | None = None
) -> tuple[list[T], str]:
    """Return up to `most` wanted items, and a text that says what could not be read. A damaged log hides no other.

    With `first_by`, looks through all items, and returns those with the smallest keys.
    """
    read: list[T] = []
    damage = ""
    generator: Any = found  # the iterators of `durable_core.control` can be closed
    try:
        async with aclosing(generator), asyncio.timeout(_SECONDS):
            async for each in found:
                if wants(each):
                    read.append(each)  # a comprehension would lose all of them to an error at the end
                if first_by is None and len(read) == most:
                    break
                if first_by is not None and len(read) == 2 * most:
                    read = nsmallest(most, read, key=first_by)
    except TimeoutError:
        damage = "There is more than can be looked through in time: choose less, such as by what ids begin with."
    except StoreError as error:
        if not read and not isinstance(error, CorruptLog):  # the store is away
            raise
        damage = "\n".join([str(error), *getattr(error, "__notes__", ())])
    return read if first_by is None else nsmallest(most, read, key=first_by), damage
