"""Reading what a store lists, where some of it may be damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from durable_core.errors import CorruptLog, StoreError

T = TypeVar("T")


async def read(found: AsyncIterator[T], most: int | None = None) -> tuple[list[T], str]:
    """Return what is found, `most` of it, and what is wrong with the rest: a log that is damaged hides no other."""
    read: list[T] = []
    try:
        async for each in found:
            read.append(each)  # a comprehension would lose them all to what is raised last
            if len(read) == most:
                break
    except StoreError as error:
        if not read and not isinstance(error, CorruptLog):  # the store is away
            raise
        return read, "\n".join([str(error), *getattr(error, "__notes__", ())])
    return read, ""
