"""Reading what a store lists: some of it may be damaged, and there may be more than a page can hold."""

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
"""How long is read of what has no end in sight. The page says what it left out."""


async def has_many(store: Store, prefix: str) -> bool:
    """Tell whether there are so many runs that those without a flow, which stand in no index, are looked at on demand alone."""
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
    """Return what is found and wanted, `most` of it, and what is wrong with the rest: a log that is damaged hides no other.

    With `first_by` all is looked through, and those are returned that come first by it.
    """
    read: list[T] = []
    damage = ""
    generator: Any = found  # what `durable_core.control` returns can be closed
    try:
        async with aclosing(generator), asyncio.timeout(_SECONDS):
            async for each in found:
                if wants(each):
                    read.append(each)  # a comprehension would lose them all to what is raised last
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
