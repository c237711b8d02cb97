"""Races within races, of steps, maps and waits, killed at any append and started again, until somebody has won."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from durable_core import Refused, Runner, RunSuspended, StepFailed, StepRecord, control
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


class Part(msgspec.Struct, frozen=True):
    """One contender: what it does, how many turns of the loop that takes, and the contenders of a race."""

    kind: str
    path: str
    turns: int
    parts: tuple[Part, ...] = ()

    @classmethod
    def draw(cls, rng: random.Random, path: str, depth: int) -> Part:
        kinds = ["step", "failure", "event", "approval", "sleep", "think", "map", *["first"] * (3 if depth else 0)]
        kind, turns = rng.choice(kinds), rng.randrange(30)
        count = rng.randrange(1, 4) if kind == "first" else 0
        return cls(kind, path, turns, tuple(cls.draw(rng, f"{path}-{number}", depth - 1) for number in range(count)))

    def events(self) -> Iterator[str]:
        if self.kind in ("event", "think"):
            yield self.path
        for part in self.parts:
            yield from part.events()

    async def run(self, runner: Runner, effects: Effects) -> Any:
        async def work(name: str) -> str:
            effects.happen(name)
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if self.kind == "failure":
                raise ConnectionError(name)
            return name

        if self.kind in ("step", "failure"):
            return await runner.step(self.path, work, self.path)
        if self.kind == "event":
            return await runner.event(self.path)
        if self.kind == "approval":
            return await runner.approval(self.path)
        if self.kind == "map":
            return await runner.map(self.path, work, ["a", "b", "c"], limit=2)
        if self.kind == "first":
            return await runner.first(
                self.path, **{part.path: lambda part=part: part.run(runner, effects) for part in self.parts}
            )
        if self.kind == "sleep":
            await runner.sleep(self.path, self.turns * 10)
        else:
            for _ in range(self.turns // 3):
                await asyncio.sleep(0)
            await runner.event(self.path)
        return await runner.step(f"{self.path}-after", work, self.path)


class Killer:
    """Ends the process at the n-th append, before it or after it; a process that is dead appends nothing more."""

    def __init__(self, store: FlakyStore, at: int, *, after: bool) -> None:
        self._left, self._is_dead = at, False
        self._store, self._after = store, after
        store.before, store.after = self._before, self._count

    def _before(self, _: StepRecord) -> None:
        if self._is_dead or (self._left == 1 and not self._after):
            self._is_dead = True
            raise Killed

    def _count(self, _: StepRecord) -> None:
        self._left -= 1
        if self._left == 0 and self._after:
            self._is_dead = True
            raise Killed


@pytest.mark.parametrize("seed", range(40))
async def test_races_that_are_killed_and_started_again(store: FlakyStore, clock: FakeClock, seed: int) -> None:
    """The winner stays the winner, nothing more is begun once it is recorded, and no wait is left that anybody is asked for."""
    rng = random.Random(seed)
    contenders = tuple(Part.draw(rng, f"part-{number}", 2) for number in range(rng.randrange(1, 4)))
    root, effects = Part("first", "root", 0, contenders), Effects()
    waits, outcome = [*root.events()], None
    for _ in range(30):
        store.before = store.after = None
        if waits and rng.random() < 0.4:
            with suppress(Refused):  # it was withdrawn
                await control.send(store, "run", rng.choice(waits), "sent")
        clock.advance(rng.choice([0, 0, 200]))
        if outcome is None and rng.random() < 0.5:
            Killer(store, rng.randrange(1, 12), after=rng.random() < 0.5)
        runner, before = Runner(store, "run", wait_limit=0, clock=clock), effects.copy()
        try:
            async with asyncio.timeout(30), runner:
                found = await root.run(runner, effects)
        except (Killed, RunSuspended):
            found = None
        except StepFailed as failed:
            found = failed.record.id
        assert not runner._run.running
        assert not runner._run.waiting
        if outcome is not None:
            assert found == outcome
            assert effects == before
        elif found is not None:
            outcome = found
            newest = {record.step_id: record for record in sorted(await store.list("run"), key=lambda each: each.revision)}
            assert not [record.step_id for record in newest.values() if record.status == "waiting"]
