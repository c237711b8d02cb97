"""Makes the checks, one after another, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from durable_cli._text import span
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


@check("lives", "Memory", danger="every run is gone when the process ends")
async def lives(scratch: Scratch) -> Safe:
    raise Unsafe("a store in memory exists in one process only; it is for tests, and nothing else was checked")


async def examine(
    url: str,
    *,
    begin: Callable[[Check], None],
    tell: Callable[[Check, Finding], None],
    rivals: int,
    checks: Sequence[Check] = CHECKS,
    seconds: float = 30.0,
) -> Sequence[str]:
    """Make checks. Call `begin` before and `tell` after each. Return the runs that could not be removed at the end.

    `rivals` is how many processes try the same thing at the same moment. No check takes longer than `seconds`, and all together
    not longer than four times that. Raises `StoreError` for a URL that names no store.
    """
    deadline = monotonic() + 4 * seconds
    with hearing.hearing() as heard:
        async with Scratch(url, heard, rivals=rivals) as scratch:
            for each in [lives] if type(scratch.store) is MemoryStore else checks:
                begin(each)
                finding = await _look(each, scratch, min(seconds, deadline - monotonic()))
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
    except Exception as error:  # a store may raise anything
        if seconds <= 0:
            says = "not looked at: the checks before it took too long"
        elif limit.expired():
            says = f"it took longer than {span(seconds)}"
        else:
            says = f"it failed: {str(error) or type(error).__name__}"
    return Finding(each.key, verdict, says, round(monotonic() - begun, 3), figures)
