"""Something happens before or after the k-th call of a store: its process dies, or another actor comes between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from itertools import count
from typing import Any, Final, Literal, NamedTuple, TypeVar

import pytest

from durable_core import Flow, StepRecord, Store
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, Killed

T = TypeVar("T")
When = Literal["before", "after"]
CALLS: Final = ("append", "get", "list")
WHEN: Final[tuple[When, When]] = ("before", "after")


async def kill() -> None:
    """End the process."""
    raise Killed


class MeetingStore(Store):
    """Passes calls on to `store`; before or after the one with number `at`, counted from 1, `meets` happens.

    After `Killed` nothing reaches the store any more, as from a process that is gone.
    """

    def __init__(
        self,
        store: Store,
        at: int = 0,
        when: When = "before",
        meets: Callable[[], Awaitable[object]] = kill,
        *,
        calls: Sequence[str] = ("append",),
    ) -> None:
        self._store, self._at, self._when, self._meets, self._calls = store, at, when, meets, calls
        self.count = 0
        self.met: tuple[str, ...] = ()
        """The call at which it happened: its method, and the run and step that it was about."""
        self.is_dead = False

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self.is_dead:
            raise Killed
        self.count += method in self._calls
        now = method in self._calls and self.count == self._at
        if now:
            first = arguments[0]
            about = (first.run_id, first.step_id) if isinstance(first, StepRecord) else arguments
            self.met = (method, *about)
        if now and self._when == "before":
            await self._meet()
        answer = await getattr(self._store, method)(*arguments)
        if now and self._when == "after":
            await self._meet()
        if self.is_dead:
            raise Killed
        return answer

    async def _meet(self) -> None:
        try:
            await self._meets()
        except Killed:
            self.is_dead = True
            raise

    async def append(self, record: StepRecord) -> StepRecord:
        return await self._call("append", record)  # type: ignore[no-any-return]

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._call("get", run_id, step_id)  # type: ignore[no-any-return]

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._call("list", run_id)  # type: ignore[no-any-return]

    async def clear(self, run_id: str) -> None:
        await self._call("clear", run_id)

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        return await self._call("newer", known)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._store, name)


class World:
    """What a run meets besides its store: its clock, and the effects that it has."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store: Final = store
        """The store as nobody disturbs it."""
        self.run_id: Final = run_id
        self.clock: Final = FakeClock()
        self.began: Final = self.clock.now()
        self.effects: Final = Effects()
        self.meeting = MeetingStore(store)
        """The store as the actors have it."""

    async def until_killed(self, flow: Flow[Any, Any], child: str = "") -> None:
        """Run the flow until its process dies."""
        with pytest.raises(Killed):
            await flow.run(self.meeting, run_id=self.run_id + child)

    async def die(self) -> None:
        """End the process."""
        self.meeting.is_dead = True
        raise Killed

    async def newest(self, step_id: str = "$flow", child: str = "") -> StepRecord | None:
        return await self.store.get(self.run_id + child, step_id)

    async def chain(self, step_id: str = "$flow", child: str = "") -> list[str]:
        """Return the entries of a step, as text."""
        return chain_of(await self.store.list(self.run_id + child), step_id, self.began)


def chain_of(entries: Sequence[StepRecord], step_id: str, began: datetime) -> list[str]:
    found = sorted((record for record in entries if record.step_id == step_id), key=lambda record: record.revision)
    assert [record.revision for record in found] == [*range(len(found))]
    return [text_of(record, began) for record in found]


def text_of(record: StepRecord, began: datetime) -> str:
    """Return status and attempt, and if they are there error, seconds until when, and the keys of the note."""
    parts = [f"{record.status} {record.attempt}"]
    if record.error is not None:
        parts.append(record.error.type.rpartition(".")[2])
    if record.until is not None:
        parts.append(f"+{(record.until - began).total_seconds():g}")
    if record.note:
        parts.append("{" + " ".join(sorted(record.note)) + "}")
    return " ".join(parts)


class Act(NamedTuple):
    """What one actor does; again if it was killed meanwhile, unless the run stands then as the act would have left it."""

    do: Callable[[Store], Awaitable[object]]
    leaves: str = ""
    """The status of `$flow` at which the actor has no more to do."""
    once: bool = False
    """Whether it is not done again."""


Life = Callable[[World], Sequence[Act]]
_numbers = count()


class Lived(NamedTuple):
    """What came of a life."""

    world: World
    at: int
    when: When
    calls: int
    met: tuple[str, ...]
    """The call at which the process died: its method, and the run and step that it was about."""
    interrupted: dict[tuple[str, str], int]
    """The steps of runs that somebody had begun when the process died, and how many entries they had."""

    def may_repeat(self, step_id: str, child: str = "") -> bool:
        """Tell whether the process died between a step's effect and its entry, so that the effect happens again."""
        return self.when == "before" and self.met == ("append", self.world.run_id + child, step_id)


async def live(life: Life, store: Store, at: int = 0, when: When = "before", calls: Sequence[str] = ("append",)) -> Lived:
    """Let the actors act, one after another; whoever makes the call with number `at` is killed, and does it again."""
    world = World(store, f"run-{next(_numbers)}")
    meeting = world.meeting = MeetingStore(store, at, when, calls=calls)
    interrupted: dict[tuple[str, str], int] = {}
    for act in life(world):
        before = await world.newest() if act.leaves else None
        try:
            await act.do(world.meeting)
        except Killed:
            assert world.meeting.is_dead
            world.meeting = MeetingStore(store, calls=calls)
            interrupted = await _intents(world)
            newest = await world.newest()
            is_left = newest != before and newest is not None and newest.status == act.leaves
            if not act.once and not is_left:
                await act.do(world.meeting)
    return Lived(world, at, when, meeting.count, meeting.met, interrupted)


async def _intents(world: World) -> dict[tuple[str, str], int]:
    found = {}
    for child in ("", "/child"):
        entries = await world.store.list(world.run_id + child)
        newest = {record.step_id: record for record in sorted(entries, key=lambda record: record.revision)}
        found.update({(child, step): r.revision + 1 for step, r in newest.items() if r.status == "started"})
    return found


def fewer(points: Sequence[T], store: Store) -> Sequence[T]:
    """Return all points; of a store in objects, whose calls take ten times as long, every sixth."""
    return points[len(points) % 6 :: 6] if type(store).__name__ == "S3Store" else points


async def everywhere(life: Life, store: Store, calls: Sequence[str] = ("append",)) -> list[Lived]:
    """Let a life be lived undisturbed, and then killed before and after each call; all of these at once."""
    undisturbed = await live(life, store, calls=calls)
    points = [(at, when) for at in range(1, undisturbed.calls + 1) for when in WHEN]
    lives = await asyncio.gather(*(live(life, store, at, when, calls) for at, when in fewer(points, store)))
    return [undisturbed, *lives]
