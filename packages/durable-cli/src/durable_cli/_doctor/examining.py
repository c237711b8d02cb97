"""Making the checks, one after another, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from durable_core import MemoryStore

from . import hearing, locking, reading, waking, writing
from .finding import Check, Finding, Note, Safe, Unsafe, Verdict, check
from .scratch import Scratch
from .timing import TIMES

CHECKS: Final = (
    *(writing.opens, writing.kept, writing.slot, writing.race, writing.clear),
    *(reading.fresh, reading.runs, reading.index),
    *(locking.lock, locking.dead_lock),
    *(waking.once, waking.again, waking.clock),
    *TIMES,
    hearing.warned,
)
_EACH: Final = 20.0  # seconds
_ALL: Final = 80.0


@check("lives", "Memory", danger="every run is gone when the process ends")
async def lives(scratch: Scratch) -> Safe:
    raise Unsafe("a store in memory lives in its process alone; it is for tests, and nothing else was checked")


async def examine(url: str, *, begin: Callable[[Check], None], tell: Callable[[Check, Finding], None]) -> Sequence[str]:
    """Make each check, telling when it begins and what it found; return the runs that could not be removed at the end.

    Raises `StoreError` for a URL that names no store.
    """
    deadline = monotonic() + _ALL
    with hearing.hearing() as heard:
        async with Scratch(url, heard) as scratch:
            for each in [lives] if type(scratch.store) is MemoryStore else CHECKS:
                begin(each)
                finding = await _look(each, scratch, min(_EACH, deadline - monotonic()))
                tell(each, finding)
                if each is writing.opens and finding.verdict == "unsafe":
                    break
    return scratch.left


async def _look(each: Check, scratch: Scratch, seconds: float) -> Finding:
    begun, figures = monotonic(), None
    verdict: Verdict = "unsafe"
    limit = asyncio.timeout(max(0, seconds))
    try:
        async with limit:
            says, figures = await each.look(scratch)
            verdict = "safe"
    except Note as note:
        verdict, says = "note", str(note)
    except Unsafe as unsafe:
        says = str(unsafe)
    except Exception as error:  # whatever a store raises
        says = f"no answer within {seconds:.0f} s" if limit.expired() else f"it failed: {str(error) or type(error).__name__}"
        if seconds <= 0:
            says = f"not looked at: the checks before took longer than {_ALL:g} s"
    return Finding(each.key, verdict, says, round(monotonic() - begun, 3), figures)
