"""The doctor's other process. It reads commands as lines of JSON, and answers each with a line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import IO, Final

from durable_core import RunBusy, StepRecord, Store, open_store
from durable_core.store import lock_of, wakeups_of

_EMPTY: Final = 3
"""Stop after so many empty answers. A single one may only mean that others are taking wake-ups just then."""


class Child:
    """The commands, with the store and the locks that this process holds."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack: Final = stack
        self._held: Final = AsyncExitStack()
        self._store: Store

    async def open(self, url: str) -> None:
        """Open the store, and connect."""
        self._store = await self._stack.enter_async_context(open_store(url))
        await self._stack.enter_async_context(self._held)
        await self._store.get("doctor", "connects")

    async def append(self, records: Sequence[str], *, together: bool = True) -> Sequence[str]:
        """Append records, together or one by one. Return the holders of their slots."""
        made = list(map(StepRecord.from_json, records))
        holders = (
            await asyncio.gather(*map(self._store.append, made)) if together else [await self._store.append(one) for one in made]
        )
        return wire(holders)

    async def contend(self, run_id: str, steps: Sequence[str], *, at: float) -> Sequence[str]:
        """Claim slots at a given time. Return their holders."""
        made = [StepRecord(run_id=run_id, step_id=step_id) for step_id in steps]
        _wait_until(at)
        return wire(await asyncio.gather(*map(self._store.append, made)))

    async def get(self, run_id: str, step_id: str) -> Sequence[str]:
        """Return the newest entry of a step, if there is one."""
        found = await self._store.get(run_id, step_id)
        return wire([found] if found else [])

    async def list(self, run_id: str) -> Sequence[str]:
        """Return all entries of a run."""
        return wire(await self._store.list(run_id))

    async def hold(self, run_id: str, *, at: float = 0.0) -> bool:
        """Try to take a run's lock at a given time, and keep it. Return True if it was taken."""
        locks = lock_of(self._store)
        assert locks is not None
        _wait_until(at)
        try:
            await self._held.enter_async_context(locks.lock(run_id))
        except RunBusy:
            return False
        return True

    async def release(self) -> None:
        """Give back all locks."""
        await self._held.aclose()

    async def take(self, flow: str, hidden: float, *, at: float) -> Sequence[str]:
        """Take all wake-ups of a flow from a given time on, hidden for `hidden` seconds. Return their tokens."""
        wakeups = wakeups_of(self._store)
        assert wakeups is not None
        _wait_until(at)
        tokens: list[str] = []
        empty = 0
        while empty < _EMPTY:
            taken = await wakeups.take_wakeups([flow], limit=5, visibility_timeout=timedelta(seconds=hidden))
            tokens += [wakeup.token for wakeup in taken]
            empty = 0 if taken else empty + 1
            if len({*tokens}) < len(tokens):  # the store shows them again: this loop would never end
                break
        return tokens


def wire(records: Sequence[StepRecord]) -> list[str]:
    """Encode records for another process."""
    return [record.to_json().decode() for record in records]


async def main(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answer commands until there are no more."""
    async with AsyncExitStack() as stack:
        child = Child(stack)
        while line := await asyncio.to_thread(asked.readline):
            do, given = json.loads(line)
            try:
                answer = [False, await getattr(child, do)(**given)]
            except Exception as error:
                answer = [True, str(error) or type(error).__name__]
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def _wait_until(at: float) -> None:
    """Block until a time of the machine's clock, so that all processes begin together."""
    time.sleep(max(0.0, at - time.time()))


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep other output out of the answers
    asyncio.run(main(sys.stdin.buffer, out))
