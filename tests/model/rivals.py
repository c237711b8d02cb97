"""Processes that claim the same slots, and note what they asked for and what they were answered."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final, Literal

import msgspec

from durable_core import StepRecord, Store, open_store

RUN: Final = "contested"
STEPS: Final = ("a", "b", "c")
REVISIONS: Final = 20
TASKS: Final = 3
"""How many calls a process has under way at the same time."""
_encode: Final = msgspec.json.encode


What = Literal["append", "get", "list"]
Entry = tuple[str, int, str]
"""Step, revision and id."""


class Line(msgspec.Struct, frozen=True):
    """The beginning of a call, or its return; a call whose process died has no return."""

    at: float
    """The machine's monotonic clock, which all its processes share."""
    call: str
    what: What
    has_returned: bool
    entries: list[Entry]
    """What is appended or asked for, and what was returned."""


class History:
    """A file to which every process appends its lines."""

    def __init__(self, path: Path) -> None:
        self._file: Final = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def begin(self, what: What, *asked: Entry) -> tuple[str, What]:
        self._calls += 1
        begun = f"{os.getpid()}-{self._calls}", what
        self._note(*begun, False, asked)
        return begun

    def end(self, begun: tuple[str, What], *records: StepRecord) -> None:
        self._note(*begun, True, tuple(entry_of(record) for record in records))

    def _note(self, call: str, what: What, has_returned: bool, entries: tuple[Entry, ...]) -> None:
        os.write(self._file, _encode(Line(monotonic(), call, what, has_returned, [*entries])) + b"\n")


def entry_of(record: StepRecord) -> Entry:
    return record.step_id, record.revision, record.id


async def claim(store: Store, history: History, random: Random) -> None:
    """Claim the next slot of some step again and again, and read now and then, until all slots are taken."""
    open_steps = set(STEPS)
    while open_steps:
        step = random.choice(sorted(open_steps))
        begun = history.begin("get", (step, -1, ""))
        newest = await store.get(RUN, step)
        history.end(begun, *([newest] if newest else ()))
        revision = 0 if newest is None else newest.revision + 1
        if revision == REVISIONS:
            open_steps.discard(step)
            continue
        now = datetime.now(UTC)
        mine = StepRecord(
            run_id=RUN, step_id=step, revision=revision, status="started", kind="step", name=step, started_at=now, ended_at=now
        )
        begun = history.begin("append", entry_of(mine))
        history.end(begun, await store.append(mine))
        if random.random() < 0.2:
            begun = history.begin("list")
            history.end(begun, *await store.list(RUN))


def main(url: str, path: Path, seed: int) -> None:
    """Be one of the processes."""

    async def together() -> None:
        history, random = History(path), Random(seed)
        async with open_store(url) as store, asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(claim(store, history, random))

    asyncio.run(together())
