"""A map: one step an item, a few at a time, and one entry once all were tried."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_core import (
    MemoryStore,
    NestedStep,
    Refused,
    RunCancelled,
    Runner,
    RunSuspended,
    SomeFailed,
    StepDrift,
    StepEvent,
    StepFailed,
    StepInterrupted,
    StepRecord,
    StepReused,
    StoreError,
    control,
    current_step,
    flow,
)
from tests.core.conftest import Effects, FlakyStore, Killed

User = dict[str, str]
USERS: list[User] = [{"id": "ada"}, {"id": "bob"}, {"id": "cleo"}]


def id_of(user: User) -> str:
    return user["id"]


async def newest(store: MemoryStore, step_id: str) -> StepRecord:
    record = await store.get("run", step_id)
    assert record is not None
    return record


async def test_one_step_an_item_and_values_in_their_order(store: MemoryStore, effects: Effects) -> None:
    """Values come in the order of the items, whichever is done first; a replay calls the function for none."""

    async def send(user: User) -> str:
        for _ in range(3 - len(effects)):
            await asyncio.sleep(0)
        effects.happen(user["id"])
        return f"sent to {user['id']}"

    for _ in range(2):
        async with Runner(store, "run") as runner:
            for _ in range(2):
                assert await runner.map("mail", send, USERS, key=id_of) == ["sent to ada", "sent to bob", "sent to cleo"]
    assert effects == {"ada": 1, "bob": 1, "cleo": 1}
    record = await newest(store, "mail")
    assert (record.kind, record.status, record.result, record.note) == ("map", "success", None, None)
    item = await newest(store, "mail/bob")
    assert (item.kind, item.name, item.value()) == ("step", "mail/bob", "sent to bob")


async def test_items_without_a_key_are_numbered(store: MemoryStore) -> None:
    """The number of an item, from 0, is its key."""
    async with Runner(store, "run") as runner:
        assert await runner.map("square", lambda number: number * number, range(3), name="squares") == [0, 1, 4]
        assert await runner.map("none", lambda number: number, []) == []
    steps = {record.step_id: record.name for record in await store.list("run")}
    assert steps == {
        "square/0": "squares/0",
        "square/1": "squares/1",
        "square/2": "squares/2",
        "square": "squares",
        "none": "none",
    }


async def test_values_are_typed(store: MemoryStore) -> None:
    """An item's value has the type that the function's annotation tells, or `returns=`; with None it has none."""

    def pair(number: int) -> tuple[int, int]:
        return number, number

    for _ in range(2):
        async with Runner(store, "run") as runner:
            assert await runner.map("annotated", pair, [1, 2]) == [(1, 1), (2, 2)]
            assert await runner.map("given", lambda each: {each}, [1, 2], returns=set[int]) == [{1}, {2}]
            assert await runner.map("nothing", pair, [1, 2], returns=None) == [None, None]


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_than_the_limit_at_once(store: MemoryStore, limit: int) -> None:
    """At most `limit` functions run at a time, and that many do; no more tasks are made."""
    running: set[int] = set()
    most, tasks = [0], [0]

    async def work(number: int) -> None:
        running.add(number)
        most[0] = max(most[0], len(running))
        tasks[0] = max(tasks[0], len(asyncio.all_tasks()))
        for _ in range(5):
            await asyncio.sleep(0)
        running.discard(number)

    before = len(asyncio.all_tasks())
    async with Runner(store, "run") as runner:
        await runner.map("work", work, range(50), limit=limit, key=int)
    assert most == [limit]
    assert tasks[0] <= before + limit


async def test_every_item_is_tried_and_too_many_failures_are_raised(store: MemoryStore, effects: Effects) -> None:
    """`SomeFailed` holds values and errors by key, now and on a replay, which runs nothing."""

    def send(user: User) -> str:
        effects.happen(user["id"])
        if user["id"] != "bob":
            raise ConnectionError(f"{user['id']} is away")
        return "sent"

    for _ in range(2):
        async with Runner(store, "run") as runner:
            with pytest.raises(SomeFailed, match="2 of 3 items failed: 'ada'") as some:
                await runner.map("mail", send, USERS, key=id_of, tolerate=1)
        assert some.value.values == {"bob": "sent"}
        assert [*some.value.failures] == ["ada", "cleo"]
        assert some.value.failures["cleo"].matches(ConnectionError)
        assert (some.value.step_id, some.value.record) == ("mail", await newest(store, "mail"))
    assert effects == {"ada": 1, "bob": 1, "cleo": 1}
    record = await newest(store, "mail")
    assert (record.status, record.note) == ("failure", {"failed": ["ada", "cleo"]})
    assert record.error is not None
    assert record.error.matches(SomeFailed)


async def test_some_failures_may_be_tolerated(store: MemoryStore) -> None:
    """Up to `tolerate` failures are None among the values, and named in the note."""

    def invert(number: int) -> float:
        return 1 / number

    for _ in range(2):
        async with Runner(store, "run") as runner:
            assert await runner.map("invert", invert, [1, 0, 2], tolerate=1) == [1.0, None, 0.5]
    record = await newest(store, "invert")
    assert (record.status, record.note) == ("success", {"failed": ["1"]})


async def test_retry_reopens_the_map_and_the_items_that_failed(store: MemoryStore, effects: Effects) -> None:
    """The others are not run again."""
    away = True

    def send(user: User) -> str:
        effects.happen(user["id"])
        if user["id"] != "bob" and away:
            raise ConnectionError("away")
        return "sent"

    @flow
    async def newsletter(runner: Runner) -> list[str]:
        return await runner.map("mail", send, USERS, key=id_of)

    with pytest.raises(Exception, match="2 of 3 items failed"):
        await newsletter.run(store, "run")
    await control.retry(store, "run", "mail")
    assert {(await newest(store, each)).status for each in ("mail", "mail/ada", "mail/cleo")} == {"reopened"}
    with pytest.raises(Refused):
        await control.retry(store, "run", "mail/bob")
    away = False
    assert await newsletter.run(store, "run") == ["sent", "sent", "sent"]
    assert effects == {"ada": 2, "bob": 1, "cleo": 2}
    assert (await newest(store, "mail")).revision == 2


async def test_a_kill_in_the_middle_of_a_retry(store: FlakyStore) -> None:
    """Retried again after a kill between its entries, the rest is reopened, and each item once."""

    def fail(number: int) -> None:
        raise ConnectionError("away")

    async with Runner(store, "run") as runner:
        with pytest.raises(SomeFailed):
            await runner.map("work", fail, range(3))

    def kill(record: StepRecord) -> None:
        if record.step_id == "work/1":
            raise Killed

    store.after = kill
    with pytest.raises(Killed):
        await control.retry(store, "run", "work")
    store.after = None
    await control.retry(store, "run", "work")
    reopened = [record.step_id for record in await store.list("run") if record.status == "reopened"]
    assert reopened == ["work/0", "work/1", "work/2", "work"]


async def test_mending_an_item_by_hand_reopens_its_map(store: MemoryStore, effects: Effects) -> None:
    """An item that is retried or resolved alone is no longer what the map failed by: the map goes on with it."""
    away = True

    def send(user: User) -> str:
        effects.happen(user["id"])
        if user["id"] != "bob" and away:
            raise ConnectionError("away")
        return "sent"

    async def newsletter() -> list[str]:
        async with Runner(store, "run") as runner:
            return await runner.map("mail", send, USERS, key=id_of)

    with pytest.raises(SomeFailed):
        await newsletter()
    await control.resolve(store, "run", "mail/ada", "by hand", reason="she came by")
    with pytest.raises(SomeFailed) as some:
        await newsletter()
    assert [*some.value.failures] == ["cleo"]
    await control.retry(store, "run", "mail/cleo")
    away = False
    assert await newsletter() == ["by hand", "sent", "sent"]
    assert effects == {"ada": 1, "bob": 1, "cleo": 2}
    statuses = [record.status for record in await store.list("run") if record.step_id == "mail"]
    assert statuses == ["failure", "reopened", "failure", "reopened", "success"]


async def test_a_function_may_change_its_own_variables(store: MemoryStore) -> None:
    """A count of what is done is no loop that went on; a variable that changed before the map began is."""
    done = 0

    async def work(number: int) -> int:
        nonlocal done
        done += 1
        return number

    async with Runner(store, "run") as runner:
        assert await runner.map("work", work, range(5)) == [0, 1, 2, 3, 4]
        maps = [runner.map(f"map-{factor}", lambda number: number * factor, [1]) for factor in (2, 3)]  # noqa: B023
        outcomes = await asyncio.gather(*maps, return_exceptions=True)
    assert done == 5
    assert [type(outcome) for outcome in outcomes] == [StepReused, list]


async def test_an_error_that_is_no_failure_stops_the_map(store: FlakyStore, effects: Effects) -> None:
    """A store that stays away is raised, no further item begins, those that run come to their end, and the next run goes on."""

    def away(record: StepRecord) -> None:
        if record.step_id == "work/3":
            raise StoreError("away")

    store.before = away
    with pytest.raises(Exception, match="the store could not record its outcome"):
        async with Runner(store, "run", store_timeout=0.1) as runner:
            await runner.map("work", lambda number: effects.happen(str(number)), range(50), limit=2)
    assert 4 <= len(effects) < 10
    store.before = None
    async with Runner(store, "run") as runner:
        assert await runner.map("work", lambda number: effects.happen(str(number)), range(50), limit=2) == [*map(str, range(50))]
    assert {name: count for name, count in effects.items() if count > 1} == {"3": 2}


async def test_an_interrupted_item_stops_the_map(store: MemoryStore, effects: Effects) -> None:
    """Somebody has to look at it: no further item begins until then."""
    now = datetime.now(UTC)
    await store.append(StepRecord(run_id="run", step_id="work/3", status="started", started_at=now, ended_at=now))

    async def work(number: int) -> str:
        await asyncio.sleep(0)
        return effects.happen(str(number))

    async with Runner(store, "run") as runner:
        with pytest.raises(StepInterrupted):
            await runner.map("work", work, range(50), limit=2)
    assert 3 <= len(effects) < 6
    await control.retry(store, "run", "work/3")
    async with Runner(store, "run") as runner:
        assert len(await runner.map("work", work, range(50), limit=2)) == 50
    assert set(effects.values()) == {1}


async def test_cancelled_with_its_caller(store: MemoryStore, effects: Effects) -> None:
    """Functions on the loop are cancelled, one in a thread is waited for and recorded, and the next run goes on."""
    may_end, began = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(number: int) -> str:
        loop.call_soon_threadsafe(began.set)
        assert may_end.wait(30)
        return effects.happen(str(number))

    async with Runner(store, "run") as runner:
        task = asyncio.create_task(runner.map("work", slow, range(5), limit=1))
        await began.wait()
        task.cancel()
        await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [record.step_id for record in await store.list("run")] == ["work/0"]
        assert await runner.map("work", slow, range(5), limit=1) == ["0", "1", "2", "3", "4"]
    assert set(effects.values()) == {1}


async def test_a_cancelled_run(store: MemoryStore, effects: Effects) -> None:
    """What runs comes to its end and is recorded; nothing more begins."""

    async def work(number: int) -> str:
        if number == 3:
            await control.cancel(store, "run", reason="enough")
        return effects.happen(str(number))

    async with Runner(store, "run") as runner:
        with pytest.raises(RunCancelled):
            await runner.map("work", work, range(50), limit=1)
    assert [*effects] == ["0", "1", "2", "3"]
    assert await store.get("run", "work") is None


async def test_a_wait_beside_a_map_does_not_cut_it_short(store: FlakyStore) -> None:
    """All items and the entry of the map are recorded before the run is suspended."""

    async def slowly(record: StepRecord) -> None:
        if record.step_id == "work":
            for _ in range(50):
                await asyncio.sleep(0)

    store.before = slowly

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        return number

    with pytest.raises(RunSuspended):
        async with Runner(store, "run", wait_limit=0) as runner:
            await asyncio.gather(runner.event("mail"), runner.map("work", work, range(50), limit=3))
    assert (await newest(store, "work")).status == "success"


async def test_two_callers_share_a_map(store: MemoryStore, effects: Effects) -> None:
    """The same map called twice at once runs each item once."""

    async def work(number: int) -> str:
        await asyncio.sleep(0)
        return effects.happen(str(number))

    async with Runner(store, "run") as runner:
        first, second = await asyncio.gather(runner.map("work", work, range(5)), runner.map("work", work, range(5)))
    assert first == second == ["0", "1", "2", "3", "4"]
    assert set(effects.values()) == {1}
    assert len(await store.list("run")) == 6


async def test_two_runners_without_a_lock(store: FlakyStore) -> None:
    """Whoever records the map first decides for both."""

    async def other(record: StepRecord) -> None:
        if record.step_id == "work":
            store.before = None
            assert await Runner(store, "run").map("work", str, [1, 2]) == ["1", "2"]

    store.before = other
    assert await Runner(store, "run").map("work", str, [1, 2]) == ["1", "2"]
    assert len(await store.list("run")) == 3


class TestOtherItems:
    """A map that is called with other items than were recorded."""

    async def test_another_order_is_no_drift(self, store: MemoryStore) -> None:
        """With a key, the values come in the order of today's items."""
        async with Runner(store, "run") as runner:
            await runner.map("mail", id_of, USERS, key=id_of)
        async with Runner(store, "run", on_drift="raise") as runner:
            assert await runner.map("mail", id_of, reversed(USERS), key=id_of) == ["cleo", "bob", "ada"]

    async def test_fewer_items_are_told(self, store: MemoryStore) -> None:
        """They are a warning, as a step's arguments are, and the recorded values are used."""
        async with Runner(store, "run") as runner:
            await runner.map("mail", id_of, USERS, key=id_of)
        async with Runner(store, "run") as runner:
            with pytest.warns(StepDrift, match="other items"):
                assert await runner.map("mail", id_of, USERS[:1], key=id_of) == ["ada"]
        async with Runner(store, "run", on_drift="raise") as runner:
            with pytest.raises(StepDrift, match="other items"):
                await runner.map("mail", id_of, USERS[:1], key=id_of)

    async def test_an_item_that_was_not_there_is_an_error(self, store: MemoryStore, effects: Effects) -> None:
        """The map has ended: a new item is never run, nor passed over in silence."""
        async with Runner(store, "run") as runner:
            await runner.map("mail", id_of, USERS[:1], key=id_of)
        async with Runner(store, "run") as runner:
            with pytest.warns(StepDrift), pytest.raises(StepDrift, match="'mail/bob' was not among its items"):
                await runner.map("mail", id_of, USERS, key=id_of)

    async def test_items_left_over_by_an_earlier_life_are_told(self, store: FlakyStore) -> None:
        """What was recorded before a kill and isn't among the items any more is drift at the flow's end."""

        def kill(record: StepRecord) -> None:
            if record.step_id == "mail":
                raise Killed

        @flow(name="newsletter", on_drift="raise")
        async def newsletter(runner: Runner, *, count: int) -> list[str]:
            return await runner.map("mail", id_of, USERS[: 3 if store.before else count], key=id_of)

        store.before = kill
        with pytest.raises(Killed):
            await newsletter.run(store, "run", count=2)
        store.before = None
        with pytest.raises(StepDrift, match="mail/cleo"):
            await newsletter.run(store, "run", count=2)


class TestBadInput:
    """One clear error before anything runs."""

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"key": lambda user: "same"}, ValueError, "two items of map 'mail' have the key 'same'"),
            ({"key": lambda user: 1.5}, TypeError, "must return a str or an int"),
            ({"key": lambda user: ""}, TypeError, "must return a str or an int"),
            ({"key": lambda user: "x" * 600}, ValueError, "bytes"),
            ({"key": "id"}, TypeError, "key must be a function"),
            ({"limit": 0}, ValueError, "limit must be a whole number, at least 1"),
            ({"limit": 1.5}, TypeError, "limit must be a whole number, at least 1"),
            ({"limit": True}, TypeError, "limit must be a whole number, at least 1"),
            ({"tolerate": -1}, ValueError, "tolerate must be a whole number, at least 0"),
            ({"tolerate": None}, TypeError, "tolerate must be a whole number, at least 0"),
            ({"max_attempts": 0}, ValueError, "max_attempts"),
            ({"attempts": 3}, TypeError, "did you mean 'max_attempts'"),
            ({"returns": 7}, TypeError, "7"),
        ],
    )
    async def test_options(
        self, store: MemoryStore, effects: Effects, options: dict[str, Any], error: type[Exception], match: str
    ) -> None:
        """Nothing runs and nothing is recorded."""
        map_: Any = Runner(store, "run").map
        with pytest.raises(error, match=match):
            await map_("mail", lambda user: effects.happen(), USERS, **options)
        assert effects == {}
        assert await store.list("run") == ()

    @pytest.mark.parametrize("step_id", ["$mail", "mail/all", "", "x" * 513])
    async def test_ids(self, store: MemoryStore, effects: Effects, step_id: str) -> None:
        """A map's id holds no slash, which its items' ids are made with."""
        with pytest.raises(ValueError):  # each says its own
            await Runner(store, "run").map(step_id, lambda user: effects.happen(), USERS)
        assert effects == {}

    async def test_no_function(self, store: MemoryStore) -> None:
        """What can't be called is told, as a step's is."""
        wrong: Any = "send"
        with pytest.raises(TypeError, match="must be a function"):
            await Runner(store, "run").map("mail", wrong, USERS)

    async def test_no_items(self, store: MemoryStore, effects: Effects) -> None:
        """Nor what can't be gone through."""
        wrong: Any = 7
        with pytest.raises(TypeError, match="items of map 'mail' must be an iterable, such as a list, not 7"):
            await Runner(store, "run").map("mail", effects.happen, wrong)

    async def test_ids_used_twice(self, store: MemoryStore) -> None:
        """Another map under the id, other items, and a step under an item's id are refused."""
        async with Runner(store, "run") as runner:
            await runner.map("mail", id_of, USERS, key=id_of)
            with pytest.raises(StepReused):
                await runner.map("mail", str, USERS, key=id_of)
            with pytest.raises(StepReused):
                await runner.map("mail", id_of, USERS[:2], key=id_of)
            with pytest.raises(StepReused):
                await runner.step("mail/ada", lambda: "ada")
            await runner.step("post/0", lambda: "mine")
            with pytest.raises(StepReused, match="post/0"):
                await runner.map("post", id_of, USERS)

    async def test_another_kind(self, store: MemoryStore) -> None:
        """A map under the id of a step of an earlier run is drift, and so is an item."""
        async with Runner(store, "run") as runner:
            await runner.step("mail", lambda: 1)
            await runner.sleep("post/0", 0)
        async with Runner(store, "run") as runner:
            with pytest.raises(StepDrift, match="'step'"):
                await runner.map("mail", id_of, USERS)
            with pytest.raises(StepDrift, match="'sleep'"):
                await runner.map("post", id_of, USERS)

    async def test_inside_a_step(self, store: MemoryStore) -> None:
        """A map inside a step of the same runner is an error, as a step is."""
        runner = Runner(store, "run")
        with pytest.raises(NestedStep):
            await runner.step("outer", lambda: runner.map("inner", str, [1]))


async def test_options_of_steps_hold_for_each_item(store: MemoryStore) -> None:
    """Attempts, delays and intents are those of `step`; what the function is told of its step, too."""
    attempts: list[tuple[str, int]] = []

    def flaky(number: int) -> int:
        step = current_step()
        attempts.append((step.step_id, step.attempt))
        if step.attempt == 1:
            raise ConnectionError
        return number

    async with Runner(store, "run") as runner:
        assert await runner.map("work", flaky, [7], max_attempts=2, at_most_once=True) == [7]
    assert attempts == [("work/0", 1), ("work/0", 2)]


async def test_what_is_told(store: MemoryStore) -> None:
    """Each item is told of as a step; the replay of a map is told of once."""
    told: list[StepEvent] = []
    for _ in range(2):
        async with Runner(store, "run", on_event=told.append) as runner:
            await runner.map("work", str, range(3))
    assert [(event.type, event.step_id) for event in told if event.step_id == "work"] == [
        ("step:success", "work"),
        ("step:replay", "work"),
    ]
    assert [event.type for event in told].count("step:replay") == 1


async def test_items_may_come_from_a_generator(store: MemoryStore) -> None:
    """Items are read once, when `map` is called."""

    def numbers() -> Iterator[int]:
        yield from range(5)

    async with Runner(store, "run") as runner:
        assert await runner.map("work", str, numbers(), limit=2) == ["0", "1", "2", "3", "4"]


async def test_memory_is_that_of_the_log(store: MemoryStore) -> None:
    """Beside what the log keeps, a map of many items costs little: no task, no closure and no result object an item."""

    async def work(number: int) -> int:
        return number

    async def peak(run_id: str, *, as_map: bool) -> int:
        gc.collect()
        tracemalloc.start()
        async with Runner(store, run_id) as runner:
            if as_map:
                await runner.map("work", work, range(1_000))
            else:
                for number in range(1_000):
                    await runner.step(f"work/{number}", work, number)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    await peak("warm", as_map=True)
    one_by_one = await peak("loop", as_map=False)
    assert await peak("map", as_map=True) < 1.2 * one_by_one


async def test_a_map_or_a_race_is_not_resolved_as_a_whole(store: MemoryStore) -> None:
    """Its value is that of its parts, and the refusal names those that failed."""

    def refuse(item: int) -> int:
        raise ValueError(item)

    @flow
    async def both(runner: Runner, what: str) -> None:
        if what == "map":
            await runner.map("map", refuse, [1, 2])
        await runner.first("race", one=lambda: runner.step("one", refuse, 1))

    for run_id, parts in (("map", "'map/0', 'map/1'"), ("race", "'one'")):
        with pytest.raises(StepFailed):
            await both.run(store, run_id, what=run_id)
        with pytest.raises(Refused, match=f"'{run_id}' of run '{run_id}' is a {run_id}.*: resolve {parts}$"):
            await control.resolve(store, run_id, run_id, [1, 2], reason="by hand")
        assert (await control.status(store, run_id)).status == "failed"
