"""The histories of processes that append to the same slots are linearizable, also where some are killed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any, NamedTuple

import msgspec
import pytest

from durable_core import StepRecord, open_store
from tests.every_store.forking import CONTEXT
from tests.model.rivals import REVISIONS, RUN, STEPS, Entry, Line, entry_of, main

SECONDS = 240
PROCESSES = 4
KILLS = 6


class Call(NamedTuple):
    """One call of a store: from when until when, and the step, revision and id of its entries."""

    what: str
    began: float
    ended: float
    """Infinite where its process died."""
    asked: tuple[Entry, ...]
    answer: tuple[Entry, ...]


def calls_in(lines: Iterable[Line]) -> list[Call]:
    begun: dict[str, Line] = {}
    calls: dict[str, Call] = {}
    for line in lines:
        if not line.has_returned:
            begun[line.call] = line
            calls[line.call] = Call(line.what, line.at, float("inf"), (*line.entries,), ())
        else:
            calls[line.call] = calls[line.call]._replace(ended=line.at, answer=(*line.entries,))
    return [*calls.values()]


def faults(calls: Sequence[Call]) -> list[str]:
    """Return what no order of the calls, one at a time, could have answered.

    A slot is a register that is written once. So a history is linearizable if every answer names one id for a slot, somebody had
    begun to write that id before the first answer that names it, and no read that began after such an answer misses it.
    """
    found = list[str]()
    written = {each.asked[0]: each.began for each in calls if each.what == "append"}
    seen = defaultdict[tuple[str, int], dict[str, float]](dict)
    """Of each slot the ids that answers named, and when the first such answer came."""
    for each in sorted(calls, key=lambda each: each.ended):
        for step, revision, holder in each.answer:
            seen[step, revision].setdefault(holder, each.ended)
    for (step, revision), ids in seen.items():
        if len(ids) > 1:
            found.append(f"{step} {revision} is held by {sorted(ids)}")
        for holder, at in ids.items():
            if written.get((step, revision, holder), float("inf")) > at:
                found.append(f"{step} {revision} was {holder} at {at}, which nobody had written yet")
    for each in calls:
        if each.ended == float("inf"):
            continue
        told = {(step, revision) for step, revision, _ in each.answer}
        known = {slot for slot, ids in seen.items() if min(ids.values()) < each.began}
        if each.what == "list" and (missed := known - told):
            found.append(f"a list that began at {each.began} misses {sorted(missed)}")
        if each.what == "append" and {each.asked[0][:2]} != told:
            found.append(f"an append to {each.asked[0]} was answered with {sorted(told)}")
        if each.what == "get":
            step, revision, _ = (each.answer or each.asked)[0]
            if any(other == step and later > revision for other, later in known):
                found.append(f"a get that began at {each.began} misses what is newer than {step} {revision}")
    return found


def call(what: str, began: float, ended: float, asked: tuple[Entry, ...] = (), answer: tuple[Entry, ...] = ()) -> Call:
    return Call(what, began, ended, asked, answer)


MINE, OTHER, NEXT, ANY = ("a", 0, "mine"), ("a", 0, "other"), ("a", 1, "next"), ("a", -1, "")


@pytest.mark.parametrize(
    "wrong",
    [
        [call("append", 0, 1, (MINE,), (MINE,)), call("append", 0, 2, (OTHER,), (OTHER,))],
        [call("list", 0, 1, (), (MINE,)), call("append", 2, 3, (MINE,), (MINE,))],
        [call("append", 0, 1, (MINE,), (MINE,)), call("list", 2, 3)],
        [call("append", 0, float("inf"), (MINE,)), call("list", 1, 2, (), (MINE,)), call("list", 3, 4)],
        [call("append", 0, 1, (MINE,), (NEXT,)), call("append", 0, 1, (NEXT,), (NEXT,))],
        [call("append", 0, 1, (NEXT,), (NEXT,)), call("append", 0, 9, (MINE,)), call("get", 2, 3, (ANY,), (MINE,))],
        [call("append", 0, 1, (MINE,), (MINE,)), call("get", 2, 3, (ANY,))],
    ],
    ids=["two winners", "from the future", "lost", "forgotten", "of another slot", "stale", "nothing"],
)
def test_what_is_not_linearizable_is_found(wrong: list[Call]) -> None:
    """Of each kind of wrong history one: two winners, an answer before its cause, an entry that is lost or missed."""
    assert faults(wrong)


def test_appends_of_processes_that_are_killed(url: str, tmp_path: Path) -> None:
    """Four processes claim slots of three steps; six times one is killed in the middle, and another comes for it."""
    path, random = tmp_path / "history", Random(url.partition(":")[0])
    path.touch()
    seeds = iter(range(100))

    def start() -> Any:
        process = CONTEXT.Process(target=main, args=(url, path, next(seeds)), daemon=True)
        process.start()
        return process

    processes = [start() for _ in range(PROCESSES)]
    killed, deadline = 0, monotonic() + SECONDS
    points = sorted(random.sample(range(10, len(STEPS) * REVISIONS * 2), KILLS))
    while any(process.is_alive() for process in processes):
        assert monotonic() < deadline
        if points and path.read_bytes().count(b"\n") >= points[0]:
            del points[0]
            number = random.randrange(PROCESSES)
            processes[number].kill()
            processes[number].join()
            killed += processes[number].exitcode == -9
            processes[number] = start()
        sleep(0.001)
    assert killed
    assert all(process.exitcode == 0 for process in processes)

    async def read() -> tuple[tuple[Entry, ...], list[StepRecord | None]]:
        async with open_store(url) as store:
            newest = [await store.get(RUN, step) for step in STEPS]
            return tuple(entry_of(record) for record in await store.list(RUN)), newest

    calls = calls_in(msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines())
    log, newest = asyncio.run(read())
    end = monotonic()
    assert [each and each.revision for each in newest] == [REVISIONS - 1] * len(STEPS)
    assert sorted(each[:2] for each in log) == [(step, revision) for step in STEPS for revision in range(REVISIONS)]
    assert any(len({each.asked for each in calls if each.asked and each.asked[0][:2] == slot[:2]}) > 1 for slot in log)
    assert not faults([*calls, Call("list", end, end, (), log)])
