"""What ends a run, what parks it, what it goes on from: every entry of `$flow`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    ChildStopped,
    DurableError,
    MemoryStore,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepEvent,
    StepFailed,
    StepInterrupted,
    StepRecord,
    control,
    flow,
)
from durable_core.engine import with_handler
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


async def entries(store: MemoryStore, step_id: str = "$flow") -> list[str]:
    return [record.status for record in await store.list("run") if record.step_id == step_id]


async def newest(store: MemoryStore) -> StepRecord:
    record = await store.get("run", "$flow")
    assert record is not None
    return record


def refuse() -> None:
    raise ConnectionError("the bank is closed")


async def test_a_typo_is_mended_and_the_run_goes_on(store: FlakyStore, effects: Effects) -> None:
    """What is recorded is not run again, and the crash stays in the log."""
    typo = [True]

    @flow
    async def pays(runner: Runner) -> str:
        await runner.step("charge", effects.happen, "charge")
        if typo:
            raise KeyError("amuont")
        return await runner.step("ship", effects.happen, "ship")

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run")
    crash = await newest(store)
    assert crash.status == "reopened"
    assert crash.error is not None
    assert crash.error.matches(KeyError)
    assert crash.until is not None
    typo.clear()
    assert await pays.run(store, run_id="run") == "ship"
    assert await entries(store) == ["started", "reopened", "started", "success"]
    assert effects == {"charge": 1, "ship": 1}


async def test_a_crash_is_tried_later_and_later_until_a_step_has_an_outcome(store: FlakyStore, clock: FakeClock) -> None:
    """One second, two, four, and one again."""
    steps = [0]

    @flow(clock=clock)
    async def pays(runner: Runner) -> None:
        for number in range(steps[0]):
            await runner.step(f"step-{number}", lambda: None)
        raise KeyError

    delays = []
    for steps[0] in (1, 1, 1, 2, 2):
        with pytest.raises(KeyError):
            await pays.run(store, run_id="run")
        crash = await newest(store)
        assert crash.until is not None
        delays.append((crash.until - crash.ended_at).total_seconds())
    assert delays == [1, 2, 4, 1, 2]


@pytest.mark.parametrize("how", ["alone", "cause", "context", "group"])
async def test_a_failed_step_that_leaves_the_flow_fails_the_run(store: FlakyStore, how: str) -> None:
    """Wherever in what leaves it the failure stands."""

    @flow
    async def pays(runner: Runner) -> None:
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(runner.step("pay-back", refuse))
        try:
            await runner.step("pay-back", refuse)
        except StepFailed as failed:
            if how == "cause":
                raise RuntimeError("no refund") from failed
            if how == "context":
                raise RuntimeError("no refund")  # noqa: B904
            raise

    for _ in range(2):
        with pytest.raises(
            StepFailed, match="^run 'run' failed at step 'pay-back': ConnectionError: the bank is closed"
        ) as failed:
            await pays.run(store, run_id="run")
        assert failed.value.step_id == "pay-back"
        assert failed.value.error.matches(ConnectionError)
    assert await entries(store) == ["started", "failure"]
    assert (await newest(store)).notes["failed"] == ["pay-back"]


async def test_an_exception_that_fails_on_names_fails_the_run(store: FlakyStore) -> None:
    """Others are crashes."""

    @flow(fails_on=(LookupError,))
    async def pays(runner: Runner, *, kind: str) -> None:
        raise KeyError(kind) if kind == "key" else ValueError(kind)

    with pytest.raises(StepFailed, match="run 'run' failed: KeyError"):
        await pays.run(store, run_id="run", kind="key")
    with pytest.raises(ValueError, match="value"):
        await pays.run(store, run_id="other", kind="value")


async def test_fails_on_holds_for_the_members_of_a_group(store: FlakyStore) -> None:
    """A task group wraps what its tasks raise."""

    @flow(fails_on=LookupError)
    async def pays(runner: Runner) -> None:
        async def look_up() -> None:
            raise KeyError("ada")

        async with asyncio.TaskGroup() as group:
            group.create_task(look_up())

    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    assert await entries(store) == ["started", "failure"]


async def test_what_was_handled_where_the_flow_was_called_is_none_of_its_own(store: FlakyStore) -> None:
    """Though Python puts it behind what the flow raises."""

    @flow
    async def pays(runner: Runner) -> None:
        raise KeyError

    try:
        await Runner(store, "run").step("pay", refuse)
    except StepFailed:
        with pytest.raises(KeyError):
            await pays.run(store, run_id="run")
    assert await entries(store) == ["started", "reopened"]


async def test_an_exception_that_the_flow_answered_with_a_step_fails_the_run(store: FlakyStore, effects: Effects) -> None:
    """What was undone can't be continued."""

    @flow
    async def ships(runner: Runner) -> None:
        await runner.step("reserve", effects.happen, "reserve")
        try:
            raise KeyError("a typo")
        except Exception:
            await runner.step("release", effects.happen, "release")
            raise

    for _ in range(2):
        with pytest.raises(StepFailed, match="a typo"):
            await ships.run(store, run_id="run")
    assert (await newest(store)).notes["answered_by"] == ["release"]
    released = await store.get("run", "release")
    assert released is not None
    assert released.notes == {"answered": "KeyError: 'a typo'"}
    assert effects == {"reserve": 1, "release": 1}


async def test_a_failure_that_was_answered_and_survived_is_no_answer_to_the_next(store: FlakyStore, effects: Effects) -> None:
    """A failed visa answered by paypal, then a failed shipment: only that ended the run."""

    @flow
    async def ships(runner: Runner) -> None:
        try:
            await runner.step("visa", refuse)
        except StepFailed:
            await runner.step("paypal", effects.happen, "paypal")
        await runner.step("ship", refuse)

    with pytest.raises(StepFailed, match="'ship'"):
        await ships.run(store, run_id="run")
    note = (await newest(store)).notes
    assert note["failed"] == ["ship"]
    assert "answered_by" not in note


@pytest.mark.parametrize("gathered", [False, True])
async def test_nothing_new_begins_where_an_answer_is_not_asked_for_any_more(
    store: FlakyStore, effects: Effects, *, gathered: bool
) -> None:
    """Killed between the release and the end of the run, and mended: nothing is shipped that was released."""
    typo = [True]

    async def reserved(runner: Runner) -> None:
        await runner.step("reserve", effects.happen, "reserve")
        try:
            if typo:
                raise KeyError("a typo")
        except Exception:
            await runner.step("release", effects.happen, "release")
            raise
        await runner.step("ship", effects.happen, "ship")

    @flow
    async def ships(runner: Runner) -> None:
        if gathered:
            await asyncio.gather(runner.step("log", effects.happen, "log"), reserved(runner))
        else:
            await reserved(runner)

    def kill(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "failure":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await ships.run(store, run_id="run")
    store.before = None
    typo.clear()
    for _ in range(2):
        with pytest.raises(StepDrift, match="'release'"):
            await ships.run(store, run_id="run")
    assert effects == {"reserve": 1, "release": 1, **({"log": 1} if gathered else {})}
    parked = await newest(store)
    assert parked.status == "waiting"
    assert "fork" in parked.notes["parked"]["why"]


async def test_a_new_step_beside_an_answer_that_is_about_to_be_asked_for_is_no_drift(store: FlakyStore, effects: Effects) -> None:
    """A sibling of the same gather gets there a few turns of the loop later."""

    async def paid(runner: Runner) -> None:
        for number in range(3):
            await runner.step(f"before-{number}", effects.happen, "before")
        try:
            await runner.step("visa", refuse)
        except StepFailed:
            await runner.step("paypal", effects.happen, "paypal")

    async def late(runner: Runner) -> None:
        if crash:
            await asyncio.sleep(0.05)
            raise KeyError
        await runner.step("new", effects.happen, "new")

    crash = [True]

    @flow
    async def pays(runner: Runner) -> None:
        await asyncio.gather(late(runner), paid(runner))

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run")
    crash.clear()
    await pays.run(store, run_id="run")
    assert effects == {"before": 3, "paypal": 1, "new": 1}


async def test_an_interrupted_step_parks_the_run(store: FlakyStore) -> None:
    """Its entry says which step, why, and what mends it."""

    def kill(record: StepRecord) -> None:
        if record.step_id == "charge" and record.status != "started":
            raise Killed

    @flow
    async def pays(runner: Runner) -> int:
        return await runner.step("charge", lambda: 1, at_most_once=True)

    store.before = kill
    with pytest.raises(Killed):
        await pays.run(store, run_id="run")
    store.before = None
    with pytest.raises(StepInterrupted):
        await pays.run(store, run_id="run")
    parked = await newest(store)
    assert parked.status == "waiting"
    assert parked.until is None
    assert parked.notes["parked"]["step"] == "charge"
    assert "control.resolve" in parked.notes["parked"]["mend"]
    assert parked.notes["waiting_for"] == [["run", "charge"]]
    await control.resolve(store, "run", "charge", 7, reason="seen in the bank's list")
    assert await pays.run(store, run_id="run") == 7


async def test_drift_parks_the_run_but_not_a_callers_other_input(store: FlakyStore) -> None:
    """That is refused before anything is recorded."""
    kind = ["step"]

    @flow
    async def pays(runner: Runner, amount: int) -> None:
        if kind[0] == "step":
            await runner.step("a", lambda: 1)
            raise KeyError
        await runner.sleep("a", 1)

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run", amount=1)
    with pytest.raises(StepDrift, match="other input"):
        await pays.run(store, run_id="run", amount=2)
    assert await entries(store) == ["started", "reopened"]
    kind[0] = "sleep"
    with pytest.raises(StepDrift, match="another id"):
        await pays.run(store, run_id="run")
    assert await entries(store) == ["started", "reopened", "started", "waiting"]
    run = await control.status(store, "run")
    assert (run.status, run.failed, run.waiting_for) == ("parked", ("a",), ())


async def test_a_suspended_run_says_what_it_waits_for(store: FlakyStore, clock: FakeClock) -> None:
    """With the earliest time at which it can go on by itself."""

    @flow(wait_limit=0, clock=clock)
    async def pays(runner: Runner) -> None:
        await asyncio.gather(runner.sleep("cool-off", timedelta(days=1)), runner.approval("ask"))

    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    waiting = await newest(store)
    assert waiting.status == "waiting"
    assert sorted(waiting.notes["waiting_for"]) == [["run", "ask"], ["run", "cool-off"]]
    assert waiting.until == clock.now() + timedelta(days=1)


async def test_a_cancelled_run_undoes_what_it_did(store: FlakyStore, effects: Effects) -> None:
    """In `except RunCancelled`, by steps with `when_cancelled=True`; nothing else begins."""

    @flow
    async def pays(runner: Runner) -> None:
        try:
            await runner.step("charge", effects.happen, "charge")
            await control.cancel(store, "run", reason="the customer called")
            for number in range(3):
                with contextlib.suppress(Exception):  # which a cancellation is not
                    await runner.step(f"ship-{number}", effects.happen, "ship")
        except RunCancelled:
            await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            raise

    for _ in range(2):
        with pytest.raises(StepFailed, match="the customer called") as failed:
            await pays.run(store, run_id="run")
        assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}
    assert await entries(store) == ["started", "reopened", "failure"]
    assert (await newest(store)).notes["cancelled"]["reason"] == "the customer called"


async def test_a_cancellation_that_comes_too_late_says_so(store: FlakyStore, effects: Effects) -> None:
    """A function that was never told had done all its work: the run succeeds."""

    @flow
    async def pays(runner: Runner) -> str:
        await runner.step("charge", effects.happen, "charge")
        await control.cancel(store, "run")
        return "done"

    assert await pays.run(store, run_id="run") == "done"
    assert await pays.run(store, run_id="run") == "done"
    end = await newest(store)
    assert end.status == "success"
    assert end.notes["cancelled"]["late"] is True


async def test_a_cancellation_between_the_return_and_the_end_is_late(store: FlakyStore) -> None:
    """Its entry takes the slot of the outcome, which goes to the next one."""

    async def cancel(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "success":
            store.before = None
            await control.cancel(store, "run")

    @flow
    async def pays(runner: Runner) -> str:
        return "done"

    store.before = cancel
    assert await pays.run(store, run_id="run") == "done"
    assert await entries(store) == ["started", "reopened", "success"]
    assert (await newest(store)).notes["cancelled"]["late"] is True


@pytest.mark.parametrize("what", ["waiting", "parked"])
async def test_a_suspension_that_loses_its_slot_to_a_cancellation_is_none(store: FlakyStore, effects: Effects, what: str) -> None:
    """The run is taken again at once, and told."""

    async def cancel(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "waiting":
            store.before = None
            await control.cancel(store, "run")

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> None:
        try:
            if what == "waiting":
                await runner.approval("ask")
            await runner.step("a", lambda: 1)
            raise StepDrift("of a step")
        except RunCancelled:
            await runner.step("undo", effects.happen, "undo", when_cancelled=True)
            raise

    if what == "parked":
        await store.append(StepRecord(run_id="run", step_id="a", status="started"))
    store.before = cancel
    with pytest.raises(StepFailed) as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"undo": 1}


async def test_a_run_whose_time_is_over_is_cancelled(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """`timeout` counts from the first start, over suspensions, and bounds their `until`."""

    @flow(timeout=timedelta(hours=1), wait_limit=0, clock=clock)
    async def pays(runner: Runner) -> None:
        try:
            await runner.approval("ask")
        except RunCancelled as cancelled:
            await runner.step("undo", effects.happen, str(cancelled.reason).partition(":")[0], when_cancelled=True)
            raise

    with pytest.raises(RunSuspended) as suspended:
        await pays.run(store, run_id="run")
    end = clock.now() + timedelta(hours=1)
    assert (await newest(store)).until == suspended.value.until == end
    clock.advance(3601)
    with pytest.raises(StepFailed, match="DeadlinePassed") as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"DeadlinePassed": 1}


async def test_a_wait_ends_when_the_time_of_its_run_is_over(store: FlakyStore, clock: FakeClock) -> None:
    """In a live process, too."""

    @flow(timeout=60, clock=clock)
    async def pays(runner: Runner) -> None:
        await runner.sleep("long", timedelta(days=1))

    begun = clock.now()
    with pytest.raises(StepFailed, match="DeadlinePassed"):
        await pays.run(store, run_id="run")
    assert timedelta(seconds=60) <= clock.now() - begun < timedelta(seconds=70)


async def test_a_run_that_was_asked_for_is_taken_up(store: FlakyStore) -> None:
    """With the input that was recorded."""

    @flow
    async def pays(runner: Runner, amount: int) -> int:
        return amount * 2

    asked = await pays.start(store, "run", amount=4)
    assert asked.status == "waiting"
    assert asked.notes["input"] == {"amount": 4}
    assert (await pays.start(store, "run", amount=4)).id == asked.id
    with pytest.raises(StepDrift, match="other input"):
        await pays.start(store, "run", amount=5)
    assert await pays.run(store, run_id="run") == 8
    assert (await pays.start(store, "run", amount=4)).status == "success"
    assert await entries(store) == ["waiting", "started", "success"]


async def test_a_run_may_be_asked_for_later(store: FlakyStore, clock: FakeClock) -> None:
    """`until` says not before when."""

    @flow(clock=clock)
    async def pays(runner: Runner) -> None: ...

    asked = await pays.start(store, "run", timedelta(hours=2))
    assert asked.until == clock.now() + timedelta(hours=2)
    with pytest.raises(TypeError, match="takes its input"):
        await pays.options().start(store, "other", None, None, 5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="can't join a transaction"):
        await pays.start(store, "third", connection=object())


class Shop:
    """A flow may be a method."""

    def __init__(self, fee: int) -> None:
        self.fee = fee

    @flow(name="order")
    async def order(self, runner: Runner, amount: int) -> int:
        """Take an order."""
        return await runner.step("add", lambda: amount + self.fee)


async def test_a_flow_that_is_a_method(store: FlakyStore) -> None:
    """It is called on its object."""
    assert await Shop(10).order.run(store, run_id="run", amount=5) == 15
    assert await Shop(10).order.run(store, run_id="run") == 15
    assert Shop.order.name == "order"


async def test_options_of_a_flow_can_be_replaced(store: FlakyStore, clock: FakeClock) -> None:
    """The flow itself stays as it was; several handlers may listen."""
    heard: list[StepEvent] = []
    first: list[str] = []

    @flow(clock=clock)
    async def pays(runner: Runner) -> None:
        await runner.sleep("long", 60)

    with pytest.raises(RunSuspended):
        await pays.options(wait_limit=0, on_event=[heard.append, lambda event: first.append(event.type)]).run(store, run_id="run")
    await pays.options(on_event=heard.append).run(store, run_id="run")
    told = [(event.type, event.name) for event in heard if event.type.startswith("run:")]
    visits = [["run:visit", "run:start", "run:suspend"], ["run:visit", "run:start", "run:end"]]
    assert told == [(type_, "pays") for visit in visits for type_ in visit]
    assert first == ["run:visit", "run:start", "step:wait", "run:suspend"]
    with pytest.raises(TypeError, match="did you mean 'wait_limit'"):
        pays.options(wait_limt=0)  # type: ignore[call-arg]


async def test_crashes_and_failures_are_told(store: FlakyStore) -> None:
    """`run:crash` with its error, `run:end` with that of a run that failed."""
    heard: list[StepEvent] = []
    crash = [True]

    @flow(on_event=heard.append)
    async def pays(runner: Runner) -> None:
        if crash:
            raise KeyError
        await runner.step("pay", refuse)

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run")
    crash.clear()
    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    told = [(event.type, type(event.error)) for event in heard if event.type in ("run:crash", "run:end")]
    assert told == [("run:crash", KeyError), ("run:end", StepFailed)]


async def test_a_flow_run_inside_a_flow_is_refused(store: FlakyStore) -> None:
    """The error names what to write; inside a step's function it is fine."""

    @flow
    async def bill(runner: Runner) -> int:
        return 1

    @flow
    async def order(runner: Runner) -> int:
        with pytest.raises(DurableError, match="runner.flow"):
            await bill.run(store, run_id="bill")

        async def billed() -> int:
            return await bill.run(store, run_id="other")

        return await runner.step("bill", billed)

    assert await order.run(store, run_id="run") == 1


async def test_who_finds_another_runner_driving_the_run_has_lost_it(clock: FakeClock) -> None:
    """A holder that was frozen for longer than its lease finds out by the next look, even where its lease check passed."""
    store = FlakyStore()
    told: list[Any] = []

    async def rival() -> None:
        mine = await newest(store)
        await store.append(
            StepRecord(run_id="run", step_id="$flow", revision=1, status="started", kind="flow", name="pays", note=mine.note)
        )
        clock.advance(60)

    @flow(clock=clock)
    async def pays(runner: Runner) -> None:
        await runner.step("freeze", rival)
        await runner.step("charge", told.append, 1)

    with pytest.raises(DurableError, match="another runner now works on"):
        await pays.run(store, run_id="run")
    assert not told


async def test_a_hand_that_is_first_lets_the_run_go_on(store: FlakyStore, effects: Effects) -> None:
    """`retry` of a crashed run that takes the slot of the next start costs nobody the run."""
    typo = [True]

    @flow
    async def pays(runner: Runner) -> str:
        if typo:
            raise KeyError("typo")
        return await runner.step("pay", effects.happen, "paid")

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run")
    typo.clear()

    async def retry(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "started":
            store.before = None
            await control.retry(store, "run")

    store.before = retry
    assert await pays.run(store, run_id="run") == "paid"
    assert await entries(store) == ["started", "reopened", "reopened", "started", "success"]


async def test_a_rival_that_is_first_has_taken_the_run(store: FlakyStore) -> None:
    """Whatever it recorded: its start, and its crash."""

    @flow
    async def pays(runner: Runner) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await pays.run(store, run_id="run")

    async def rival(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "started":
            store.before = None
            await store.append(StepRecord(run_id="run", step_id="$flow", revision=2, status="started", kind="flow", name="pays"))

    store.before = rival
    with pytest.raises(DurableError, match="another runner now works on"):
        await pays.run(store, run_id="run")


@pytest.mark.parametrize("early", [False, True])
async def test_a_run_that_undid_something_is_told_again_though_the_event_has_come(
    store: FlakyStore, effects: Effects, *, early: bool
) -> None:
    """Killed after the refund, it gives back all; what nobody was told of by then counts for nothing."""

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> None:
        try:
            await runner.step("charge", effects.happen, "charge")
            if early:
                await control.cancel(store, "run")  # so that the event is not even asked for
            await runner.event("paid")
        except RunCancelled:
            await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            await runner.step("tell", effects.happen, "tell", when_cancelled=True)
            raise

    if not early:
        with pytest.raises(RunSuspended):
            await pays.run(store, run_id="run")
        await control.cancel(store, "run")

    def kill(record: StepRecord) -> None:
        if record.step_id == "tell":
            effects.clear()
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await pays.run(store, run_id="run")
    store.before = None
    await control.send(store, "run", "paid")
    with pytest.raises(StepFailed) as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"tell": 1}
    refund = await store.get("run", "refund")
    assert refund is not None
    assert refund.notes == {"answered": "RunCancelled", "told_at": ["paid"]}


async def test_a_run_that_is_taken_again_at_once_is_called_anew(store: FlakyStore, effects: Effects) -> None:
    """Its suspension lost to a cancellation: what it published is found again, and objects of the first call are forgotten."""

    @flow(wait_limit=0)
    async def waits(runner: Runner) -> None:
        mine = object()
        await runner.publish("progress", 1)
        await runner.step("use", lambda: len(repr(mine)))
        try:
            await runner.sleep("nap", 60)
        except RunCancelled:
            await runner.step("undo", effects.happen, "undo", when_cancelled=True)
            raise

    async def cancel(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "waiting":
            store.before = None
            await control.cancel(store, "run")

    store.before = cancel
    with pytest.raises(StepFailed) as failed:
        await waits.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"undo": 1}
    assert await entries(store, "progress") == ["success"]


async def test_an_answer_in_an_except_star_ends_the_run(store: FlakyStore, effects: Effects) -> None:
    """Python makes the group that is handled there, and another one that leaves: their members are the same."""

    @flow
    async def releases(runner: Runner) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(refuse))
        except* ConnectionError:
            await runner.step("release", effects.happen, "release")
            raise

    with pytest.raises(StepFailed):
        await releases.run(store, run_id="run")
    assert (await newest(store)).notes["answered_by"] == ["release"]


async def test_an_answer_that_replays_slowly_is_no_drift(store: FlakyStore) -> None:
    """A handler takes its time over what one task replays, while another task asks for something new."""

    async def write(event: StepEvent) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    @flow(wait_limit=0, on_event=write)
    async def pays(runner: Runner) -> None:
        async def pay() -> None:
            for number in range(3):
                await runner.step(f"ask-{number}", lambda: None)
            try:
                await runner.step("card", refuse)
            except StepFailed:
                await runner.step("cash", lambda: None)

        async def pack() -> None:
            await runner.event("packed")
            await runner.step("close", lambda: None)

        await asyncio.gather(pay(), pack())

    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    await control.send(store, "run", "packed")
    await pays.run(store, run_id="run")
    assert await entries(store) == ["started", "waiting", "started", "success"]


async def test_what_was_answered_is_not_kept(store: FlakyStore) -> None:
    """A flow that answers thousands of failures holds nothing that the failed functions held."""
    gone: list[weakref.ref[Effects]] = []

    async def fail() -> None:
        large = Effects()
        gone.append(weakref.ref(large))
        raise ConnectionError

    @flow
    async def goes_on(runner: Runner) -> bool:
        try:
            await runner.step("fails", fail)
        except StepFailed:
            await runner.step("instead", lambda: None)
        gc.collect()
        return gone[0]() is None

    assert await goes_on.run(store, run_id="run") is True


async def test_many_waits_share_what_they_are_suspended_for(store: FlakyStore) -> None:
    """Each names all: built anew for each of them, that would grow with the square of their number."""
    found: list[Any] = []

    @flow(wait_limit=0)
    async def waits(runner: Runner) -> None:
        found.extend(await asyncio.gather(*(runner.event(f"e{n}") for n in range(50)), return_exceptions=True))

    with pytest.raises(RunSuspended) as suspended:
        await waits.run(store, run_id="run")
    assert len(suspended.value.waiting_for) == 50
    assert {id(each.waiting_for) for each in found} == {id(suspended.value.waiting_for)}


@pytest.mark.parametrize("in_child", [False, True], ids=["alone", "in a child"])
async def test_undoing_that_was_interrupted_is_retried(store: FlakyStore, *, in_child: bool) -> None:
    """A cancelled run may be parked, too: its status says by what, and `retry` of the run lets it go on."""
    killed = [True]

    async def give_back() -> None:
        if killed:
            raise Killed

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> None:
        try:
            await runner.event("word")
        except RunCancelled:
            await runner.step("give-back", give_back, when_cancelled=True, at_most_once=True)
            raise

    @flow(wait_limit=0)
    async def delegates(runner: Runner) -> None:
        await runner.flow("pays", pays)

    job, paying = (delegates, "run/pays") if in_child else (pays, "run")
    with pytest.raises(RunSuspended):
        await job.run(store, run_id="run")
    await control.cancel(store, "run", reason="enough")
    for error in (Killed, (StepInterrupted, ChildStopped)):
        with pytest.raises(error):
            await job.run(store, run_id="run")
    status = await control.status(store, paying)
    assert (status.status, status.failed) == ("parked", ("give-back",))
    assert status.mend == f"durable_core.control.resolve or retry(store, '{paying}', 'give-back')"
    killed.clear()
    await control.retry(store, "run")
    with pytest.raises(StepFailed, match="enough"):
        await job.run(store, run_id="run")
    assert (await control.status(store, "run")).status == "cancelled"


async def test_siblings_are_told_of_a_cancellation_before_the_run_ends(effects: Effects) -> None:
    """The function left with the first that was told; another one of the same gather had something to undo."""
    asked = asyncio.Event()

    class Slow(FlakyStore):
        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            for _ in range(50 if step_id == "ticket" else 0):
                await asyncio.sleep(0)
            return await super().get(run_id, step_id)

    @flow
    async def books(runner: Runner) -> None:
        async def book() -> None:
            await runner.step("charge", effects.happen_async, "charge")
            try:
                await runner.event("ticket")
            except RunCancelled:
                await runner.step("refund", effects.happen_async, "refund", when_cancelled=True)
                raise

        async def ask() -> None:
            await asked.wait()
            await runner.approval("boss")

        await asyncio.gather(ask(), book())

    def hear(record: StepRecord) -> None:
        if record.step_id == "ticket":
            asked.set()

    store = Slow()
    store.after = hear
    running = asyncio.create_task(books.run(store, run_id="run"))
    while await store.get("run", "boss") is None:
        await asyncio.sleep(0)
    for _ in range(20):  # both listen
        await asyncio.sleep(0)
    await control.cancel(store, "run")
    with pytest.raises(StepFailed) as failed:
        await running
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}


async def test_a_run_that_is_asked_for_after_its_cancellation_is_ended(store: FlakyStore) -> None:
    """The request came between the look of who asks and its entry: nothing of the run ever runs."""

    @flow
    async def pays(runner: Runner) -> None:
        raise AssertionError

    await store.append(StepRecord(run_id="run", step_id="$cancel", kind="flow", note={"reason": "enough"}))
    asked = await pays.start(store, "run")
    assert asked.status == "failure"
    assert asked.error is not None
    assert asked.error.matches(RunCancelled)


async def test_a_cancellation_before_the_last_life_is_late_where_all_was_done(store: FlakyStore, effects: Effects) -> None:
    """Every step replays, so nobody is told."""

    @flow
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", effects.happen, "paid")

    def kill(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "success":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await pays.run(store, run_id="run")
    store.before = None
    await control.cancel(store, "run")
    assert await pays.run(store, run_id="run") == "paid"
    assert (await newest(store)).notes["cancelled"]["late"] is True


async def test_a_rival_that_takes_the_slot_of_the_outcome_has_taken_the_run(store: FlakyStore) -> None:
    """What this runner found out is no outcome of a run that another drives."""

    @flow
    async def pays(runner: Runner) -> str:
        return "own"

    async def rival(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "success":
            store.before = None
            await store.append(StepRecord(run_id="run", step_id="$flow", revision=1, status="started", kind="flow", name="pays"))

    store.before = rival
    with pytest.raises(DurableError, match="another runner now works on"):
        await pays.run(store, run_id="run")
    assert await entries(store) == ["started", "started"]


async def test_the_time_of_a_run_counts_from_its_start_and_not_from_the_asking(store: FlakyStore, clock: FakeClock) -> None:
    """It may have been asked for long before."""

    @flow(timeout=60, clock=clock, wait_limit=0)
    async def pays(runner: Runner) -> None:
        await runner.approval("ask")

    await pays.start(store, "run")
    clock.advance(3600)
    with pytest.raises(RunSuspended) as suspended:
        await pays.run(store, run_id="run")
    assert suspended.value.until == clock.now() + timedelta(seconds=60)


async def test_who_waits_for_the_end_in_this_process_hears_of_it_at_once(store: FlakyStore) -> None:
    """From its runner, though the store has no watch and is polled every 30 seconds only."""
    store.watch = None  # type: ignore[assignment,method-assign]

    @flow
    async def pays(runner: Runner) -> str:
        return "paid"

    await pays.start(store, "run")
    waits = asyncio.create_task(control.result(store, "run"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert await pays.run(store, run_id="run") == "paid"
    async with asyncio.timeout(5):
        assert await waits == "paid"


async def test_one_more_handler_leaves_those_that_the_flow_has() -> None:
    """Who drives another's flow may listen, and changes nothing of it."""
    heard: list[str] = []
    mine: list[str] = []

    @flow(on_event=lambda event: heard.append(event.type))
    async def quiet(runner: Runner) -> None:
        await runner.step("a", lambda: 1)

    store = MemoryStore()
    await with_handler(with_handler(quiet, lambda event: mine.append(event.type)), lambda event: mine.append("twice")).run(
        store, run_id="run"
    )
    assert heard == ["run:visit", "run:start", "step:start", "step:success", "run:end"]
    assert [each for each in mine if each != "twice"] == heard
    assert mine.count("twice") == len(heard)
    assert await quiet.run(store, run_id="run") is None
