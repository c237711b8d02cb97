"""`retry` of a whole run: what failed it is reopened, what its flow caught stays, and those that called for it go on."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    MemoryStore,
    Refused,
    RunBusy,
    Runner,
    RunSuspended,
    StepError,
    StepFailed,
    StepInterrupted,
    StepRecord,
    Store,
    control,
    flow,
)
from durable_core.testing import CrashingStore, FakeClock, InjectedFault
from tests.core.conftest import Effects

WORKS = [False]


@pytest.fixture(autouse=True)
def broken() -> None:
    WORKS[0] = False


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def bank() -> str:
    if not WORKS[0]:
        raise ConnectionError("the bank is closed")
    return "charged"


async def chain(store: Store, run_id: str, step_id: str) -> list[str]:
    return [record.status for record in await store.list(run_id) if record.step_id == step_id]


async def append(store: Store, run_id: str, step_id: str, status: Any, revision: int = 0, **fields: Any) -> StepRecord:
    fields = {"kind": "flow" if step_id == "$flow" else "step", **fields}
    if status == "failure":
        fields.setdefault("error", StepError("OSError"))
    return await store.append(StepRecord(run_id=run_id, step_id=step_id, status=status, revision=revision, **fields))


@flow
async def pays(runner: Runner) -> str:
    with contextlib.suppress(StepFailed):
        await runner.step("coupon", lambda: 1 / 0)
    return await runner.step("charge", bank)


async def test_a_failed_run_is_retried(store: MemoryStore) -> None:
    """The step whose failure ended it runs anew; the failure that the flow caught stays. Who did it and why is noted."""
    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    record = await control.retry(store, "run", reason="the bank is open", by="alice")
    assert (record.step_id, record.status, record.error) == ("$flow", "reopened", None)
    assert (record.notes["reason"], record.notes["by"]) == ("the bank is open", "alice")
    assert "failed" not in record.notes
    assert await chain(store, "run", "charge") == ["failure", "reopened"]
    assert await chain(store, "run", "coupon") == ["failure"]
    assert (await control.status(store, "run")).status == "waiting"
    WORKS[0] = True
    assert await pays.run(store, run_id="run") == "charged"


async def test_all_that_failed_a_run_is_retried(store: MemoryStore, effects: Effects) -> None:
    """Of a group of failures each step whose failure left it."""

    @flow
    async def both(runner: Runner) -> None:
        both = await asyncio.gather(*(runner.step(name, bank) for name in ("a", "b")), return_exceptions=True)
        raise BaseExceptionGroup("both", [error for error in both if isinstance(error, BaseException)])

    with pytest.raises(StepFailed):
        await both.run(store, run_id="run")
    failed = (await control.status(store, "run")).failed
    assert {*failed} == {"a", "b"}
    await control.retry(store, "run")
    assert [await chain(store, "run", name) for name in failed] == [["failure", "reopened"]] * 2


@pytest.mark.parametrize("at", [1, 2])
async def test_retrying_a_run_is_safe_to_repeat_after_a_crash(store: MemoryStore, at: int) -> None:
    """Whatever had been appended when it was cut off, the same call again does the rest, and no more than that."""
    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    with pytest.raises(InjectedFault):
        await control.retry(CrashingStore(store, at=at), "run")
    first = await control.retry(store, "run")
    assert await control.retry(store, "run") == first
    assert await chain(store, "run", "charge") == ["failure", "reopened"]
    assert await chain(store, "run", "$flow") == ["started", "failure", "reopened"]


async def test_two_people_who_retry_a_run_at_once(store: MemoryStore) -> None:
    """Did the same."""
    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    one, other = await asyncio.gather(*(control.retry(store, "run") for _ in range(2)))
    assert one == other
    assert len(await store.list("run")) == 6


async def test_a_failure_that_was_answered_is_not_retried(store: MemoryStore) -> None:
    """What was undone can't be continued: neither the run nor its step is reopened or resolved, and how to go on is said."""

    @flow
    async def reserves(runner: Runner) -> str:
        await runner.step("reserve", lambda: "seat")
        try:
            return await runner.step("charge", bank)
        except StepFailed:
            await runner.step("release", lambda: "released")
            raise

    with pytest.raises(StepFailed):
        await reserves.run(store, run_id="run")
    before = await store.list("run")
    for act in (
        lambda: control.retry(store, "run"),
        lambda: control.retry(store, "run", "charge"),
        lambda: control.retry(store, "run", "$flow"),
        lambda: control.resolve(store, "run", "charge", "paid", reason="in cash"),
    ):
        with pytest.raises(Refused, match=r"answered its failure with 'release'.*fork\(store, 'run', …, before=…\)"):
            await act()
    assert await store.list("run") == before


async def test_a_failure_that_another_step_made_good_is_not_run_again(store: MemoryStore, effects: Effects) -> None:
    """A refused card answered by another way to pay, then a failed shipment: the shipment alone runs anew."""

    def visa() -> str:
        effects.happen("visa")
        raise ConnectionError

    @flow
    async def order(runner: Runner) -> str:
        try:
            await runner.step("visa", visa)
        except StepFailed:
            await runner.step("paypal", effects.happen, "paypal")
        return await runner.step("ship", bank)

    with pytest.raises(StepFailed):
        await order.run(store, run_id="run")
    await control.retry(store, "run")
    WORKS[0] = True
    assert await order.run(store, run_id="run") == "charged"
    assert effects == {"visa": 1, "paypal": 1}


@pytest.mark.parametrize("act", ["retry", "resolve"])
@pytest.mark.parametrize("step_id", ["coupon", "mail/bob"])
async def test_a_failure_that_the_flow_caught_is_left_alone_once_the_run_has_succeeded(
    store: MemoryStore, act: str, step_id: str
) -> None:
    """No run would ask for the step again, so whoever reopened it would wait in vain."""

    @flow
    async def order(runner: Runner) -> str:
        with contextlib.suppress(StepFailed):
            await runner.step("coupon", lambda: 1 / 0)
        await runner.map("mail", int, ["7", "bob"], key=str, tolerate=1)
        return "sent"

    assert await order.run(store, run_id="run") == "sent"
    before = await store.list("run")
    with pytest.raises(Refused, match=rf"'run' succeeded, so nothing runs its step '{step_id}' again; .*fork\(store, 'run'"):
        if act == "retry":
            await control.retry(store, "run", step_id)
        else:
            await control.resolve(store, "run", step_id, 1, reason="by hand")
    assert await store.list("run") == before


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([("started",), ("success", 1)], "succeeded, so there is nothing to retry"),
        ([("failure", 0, {"error": StepError("durable_core.errors.RunCancelled")})], r"was cancelled.*fork\(store, 'run'"),
        ([("waiting",)], "it waits"),
        ([("started",), ("reopened", 1, {"note": {"cancelled": {}}})], "is being cancelled"),
    ],
)
async def test_runs_that_need_no_retry(store: MemoryStore, entries: Any, match: str) -> None:
    """Each is refused with how it stands."""
    for status, *more in entries:
        await append(store, "run", "$flow", status, more[0] if more else 0, **(more[1] if len(more) > 1 else {}))
    before = await store.list("run")
    with pytest.raises(Refused, match=match):
        await control.retry(store, "run")
    assert await store.list("run") == before


async def test_a_run_without_a_flow_is_retried_by_its_steps(store: MemoryStore) -> None:
    """Nothing says which failures ended it; a run that isn't there is told."""
    with pytest.raises(StepFailed):
        await Runner(store, "run").step("charge", bank)
    with pytest.raises(Refused, match="has no flow.*pass step_id"):
        await control.retry(store, "run")
    with pytest.raises(Refused, match="no run 'nowhere'"):
        await control.retry(store, "nowhere")


async def test_a_crashed_run_is_due_at_once(store: MemoryStore) -> None:
    """Its next try need not be waited for."""

    @flow
    async def typo(runner: Runner) -> None:
        await runner.step("a", lambda: 1)
        raise NameError("totl")

    with pytest.raises(NameError):
        await typo.run(store, run_id="run")
    assert (await control.status(store, "run")).until is not None
    record = await control.retry(store, "run")
    status = await control.status(store, "run")
    assert (status.status, status.until, status.error) == ("waiting", None, None)
    assert await control.retry(store, "run") == record


async def test_a_parked_run_goes_on_with_the_step_that_parks_it(store: MemoryStore, effects: Effects) -> None:
    """A step that was interrupted is reopened, and runs anew."""

    @flow
    async def job(runner: Runner) -> str:
        return await runner.step("pay", effects.happen, "pay", at_most_once=True)

    await append(store, "run", "pay", "started")
    with pytest.raises(StepInterrupted):
        await job.run(store, run_id="run")
    await control.retry(store, "run", by="alice")
    assert await chain(store, "run", "pay") == ["started", "reopened"]
    assert (await control.status(store, "run")).status == "waiting"
    assert await job.run(store, run_id="run") == "pay"


async def test_a_run_that_is_parked_by_drift_goes_on(store: MemoryStore) -> None:
    """Once its code was mended; no step is touched."""
    note = {"parked": {"step": "ask", "why": "drift", "mend": "…"}, "waiting_for": [], "input": {}}
    await append(store, "run", "ask", "waiting", kind="approval")
    await append(store, "run", "$flow", "waiting", note=note)
    record = await control.retry(store, "run")
    assert (record.status, record.note) == ("reopened", {"input": {}})
    assert await chain(store, "run", "ask") == ["waiting"]


async def test_an_interrupted_run_is_retried_unless_it_runs(store: MemoryStore) -> None:
    """Its lock tells; what it was at when it was cut off is left to the next run."""
    await append(store, "run", "$flow", "started")
    await append(store, "run", "pay", "started")
    async with store.lock("run"):
        with pytest.raises(RunBusy):
            await control.retry(store, "run")
    assert (await control.retry(store, "run")).status == "reopened"
    assert await chain(store, "run", "pay") == ["started"]


@pytest.mark.parametrize(
    ("error", "reopened"),
    [
        (StepError("durable_core.errors.StepFailed"), ["b", "c"]),
        (StepError("ExceptionGroup", bases=("BaseExceptionGroup", "Exception")), ["b", "c"]),
        (StepError("NameError"), []),
    ],
)
async def test_a_failure_of_an_older_log_that_lists_no_steps(store: MemoryStore, error: StepError, reopened: list[str]) -> None:
    """The steps that failed last are retried; none where the flow's own code raised."""
    await append(store, "run", "$flow", "started")
    for step_id, status in (("caught", "failure"), ("a", "success"), ("b", "failure"), ("c", "failure")):
        await append(store, "run", step_id, status)
    await append(store, "run", "$flow", "failure", 1, error=error)
    await control.retry(store, "run")
    assert [record.step_id for record in await store.list("run") if record.status == "reopened"] == [*reopened, "$flow"]


async def test_a_step_that_waits_for_its_next_attempt_is_due_now(store: MemoryStore) -> None:
    """The entry is the same but for its time, with the attempts that were made and their error."""
    clock = FakeClock()
    error = StepError("ConnectionError", "closed")
    later = clock.now() + timedelta(hours=1)
    await append(store, "run", "charge", "waiting", attempt=3, error=error, until=later, fingerprint="f")
    record = await control.retry(store, "run", "charge", reason="the bank is open", by="alice", clock=clock)
    assert (record.status, record.until, record.attempt, record.error) == ("waiting", clock.now(), 3, error)
    assert (record.revision, record.fingerprint) == (1, "f")
    assert record.note == {"reason": "the bank is open", "by": "alice"}
    assert await control.retry(store, "run", "charge", clock=clock) == record
    await append(store, "run", "ask", "waiting", kind="approval", until=later)
    with pytest.raises(Refused, match="neither failed nor was interrupted"):
        await control.retry(store, "run", "ask", clock=clock)


async def test_a_wait_that_lost_is_left_alone(store: MemoryStore) -> None:
    """Nobody needs it any more: it is not retried, not resolved, and not decided."""
    error = StepError("durable_core.errors.Withdrawn", "'ship' was quicker", bases=("durable_core.errors.DurableError",))
    await append(store, "run", "rail", "failure", kind="approval", error=error)
    for act in (
        lambda: control.retry(store, "run", "rail"),
        lambda: control.resolve(store, "run", "rail", 1, reason="seen"),
    ):
        with pytest.raises(Refused, match="lost to another contender"):
            await act()
    with pytest.raises(Refused, match="'ship' was quicker"):
        await control.approve(store, "run", "rail", by="alice")


@pytest.mark.parametrize("by_run", [True, False])
async def test_a_map_is_retried_with_its_items_that_failed(store: MemoryStore, by_run: bool) -> None:
    """The items that went well stay."""
    await append(store, "run", "$flow", "started")
    for key, status in (("1", "success"), ("2", "failure"), ("3", "failure")):
        await append(store, "run", f"mail/{key}", status)
    await append(store, "run", "mail", "failure", kind="map", note={"failed": ["2", "3"]})
    await append(store, "run", "$flow", "failure", 1, note={"failed": ["mail"]})
    await (control.retry(store, "run") if by_run else control.retry(store, "run", "mail"))
    reopened = [record.step_id for record in await store.list("run") if record.status == "reopened"]
    assert reopened == ["mail/2", "mail/3", "mail", "$flow"]


@flow
async def bill(runner: Runner) -> str:
    return await runner.step("charge", bank)


@flow
async def shop(runner: Runner) -> str:
    return await runner.flow("bill", bill)


@flow
async def mall(runner: Runner) -> str:
    return await runner.flow("shop", shop)


@pytest.mark.parametrize(
    "named", [("run",), ("run", "shop"), ("run/shop", "bill"), ("run/shop/bill",), ("run/shop/bill", "charge")]
)
async def test_one_call_repairs_a_family(store: MemoryStore, named: tuple[str, ...]) -> None:
    """Whichever of them is named: parent, step or child. What failed runs anew, and all that failed by it go on."""
    with pytest.raises(StepFailed):
        await mall.run(store, run_id="run")
    assert [run.status async for run in control.runs(store)] == ["failed"] * 3
    await control.retry(store, *named)
    assert [run.status async for run in control.runs(store)] == ["waiting"] * 3
    WORKS[0] = True
    assert await mall.run(store, run_id="run") == "charged"
    assert [run.status async for run in control.runs(store)] == ["succeeded"] * 3


@pytest.mark.parametrize("named", [("run",), ("run/shop/bill",), ("run/shop/bill", "charge")])
async def test_repairing_a_family_is_safe_to_repeat_after_a_crash(named: tuple[str, ...]) -> None:
    """Wherever it was cut off, the same call again does the rest."""
    at = 0
    while True:
        store, at = MemoryStore(), at + 1
        WORKS[0] = False
        with pytest.raises(StepFailed):
            await mall.run(store, run_id="run")
        crashing = CrashingStore(store, at=at)
        try:
            await control.retry(crashing, *named)
        except InjectedFault:
            await control.retry(store, *named)
        else:
            break
        assert [run.status async for run in control.runs(store)] == ["waiting"] * 3, at
        WORKS[0] = True
        assert await mall.run(store, run_id="run") == "charged"
    assert at > 5


async def test_a_parent_that_caught_the_failure_stays(store: MemoryStore) -> None:
    """Its child goes on, and its own outcome is what it is."""

    @flow
    async def shrugs(runner: Runner) -> str:
        with contextlib.suppress(StepFailed):
            await runner.flow("bill", bill)
        return "closed"

    assert await shrugs.run(store, run_id="run") == "closed"
    await control.retry(store, "run/bill")
    assert (await control.status(store, "run")).status == "succeeded"
    assert (await control.status(store, "run/bill")).status == "waiting"
    assert await chain(store, "run", "bill") == ["waiting", "failure"]


async def test_a_child_of_a_parent_that_answered_is_not_retried(store: MemoryStore) -> None:
    """It would go on with what its parent has undone."""

    @flow
    async def undoes(runner: Runner) -> str:
        try:
            return await runner.flow("bill", bill)
        except StepFailed:
            await runner.step("release", lambda: "released")
            raise

    with pytest.raises(StepFailed):
        await undoes.run(store, run_id="run")
    before = [await store.list(run_id) for run_id in ("run", "run/bill")]
    for named in (("run",), ("run", "bill"), ("run/bill",), ("run/bill", "charge")):
        with pytest.raises(Refused, match="answered its failure with 'release'"):
            await control.retry(store, *named)
    assert [await store.list(run_id) for run_id in ("run", "run/bill")] == before


@pytest.mark.parametrize("named", [("run",), ("run/shop/bill",), ("run/shop/bill", "charge")])
async def test_a_family_that_is_parked_goes_on(store: MemoryStore, effects: Effects, named: tuple[str, ...]) -> None:
    """A child's interrupted step parks all of them; mended, none of them is parked any more."""

    @flow(name="bill")
    async def once(runner: Runner) -> str:
        return await runner.step("charge", effects.happen, "charge", at_most_once=True)

    @flow(name="shop")
    async def small(runner: Runner) -> str:
        return await runner.flow("bill", once)

    @flow(name="mall")
    async def large(runner: Runner) -> str:
        return await runner.flow("shop", small)

    await append(store, "run/shop/bill", "charge", "started")
    with pytest.raises(BaseException, match="charge"):
        await large.run(store, run_id="run")
    assert {run.status async for run in control.runs(store)} == {"parked"}
    await control.retry(store, *named)
    assert {run.status async for run in control.runs(store)} == {"waiting"}
    assert await large.run(store, run_id="run") == "charge"


async def test_who_acts_is_a_person(store: MemoryStore) -> None:
    """A name, and none of the library's."""
    await append(store, "run", "charge", "failure")
    for by, error in (("", TypeError), (7, TypeError), ("$deadline", ValueError)):
        for act in (control.retry, control.resolve, control.cancel, control.approve):
            given: dict[str, Any] = {"reason": "seen"} if act is control.resolve else {}
            steps = () if act is control.cancel else ("charge",)
            with pytest.raises(error, match="by "):
                await act(store, "run", *steps, by=by, **given)
    record = await control.resolve(store, "run", "charge", 7, reason="by phone", by="alice")
    assert record.note == {"reason": "by phone", "by": "alice"}


async def test_a_note_of_an_earlier_act_does_not_stay(store: MemoryStore) -> None:
    """Who retried a step is not said to have done what another did later."""
    await append(store, "run", "charge", "failure", note={"show": 1})
    await control.retry(store, "run", "charge", reason="once more", by="alice")
    await append(store, "run", "charge", "failure", 2, note={"show": 1, "reason": "once more", "by": "alice"})
    assert (await control.retry(store, "run", "charge", by="bob")).note == {"show": 1, "by": "bob"}
    await append(store, "run", "charge", "failure", 4, note={"show": 1, "by": "bob"})
    assert (await control.retry(store, "run", "charge")).note == {"show": 1}


async def test_retrying_a_suspended_run_says_what_it_waits_for(store: MemoryStore) -> None:
    """There is nothing to mend."""

    @flow(wait_limit=0)
    async def asks(runner: Runner) -> None:
        await runner.approval("go")

    with pytest.raises(RunSuspended):
        await asks.run(store, run_id="run")
    with pytest.raises(Refused, match="neither failed nor is it stuck"):
        await control.retry(store, "run")


@pytest.mark.parametrize("kind", ["map", "first"])
async def test_a_child_in_a_map_or_a_race_is_mended_with_it(store: MemoryStore, kind: Any) -> None:
    """The run that failed by the whole goes on, with the part that called for the child."""
    await append(store, "run", "$flow", "started")
    await append(store, "run", "bills/7", "failure", kind="flow", note={"run": "run/bills/7", "flow": "bill", "input": {}})
    await append(store, "run", "bills", "failure", kind=kind, note={"failed": ["7" if kind == "map" else "bills/7"]})
    await append(store, "run", "$flow", "failure", 1, note={"failed": ["bills"]})
    parent = {"parent": {"run": "run", "step": "bills/7"}}
    await append(store, "run/bills/7", "charge", "failure")
    await append(store, "run/bills/7", "$flow", "failure", note={"failed": ["charge"], **parent})
    await control.retry(store, "run/bills/7")
    reopened = [record.step_id for record in await store.list("run") if record.status == "reopened"]
    assert reopened == ["bills/7", "bills", "$flow"]


@pytest.mark.parametrize("state", ["failed", "started", "crashed", "parked", "answered"])
async def test_a_runs_outcome_may_be_set_by_hand(store: MemoryStore, state: str) -> None:
    """Where it failed or is stuck, also where it can't go on; what lasts of its note stays, and what it was stuck by does not."""
    note: dict[str, Any] = {"input": {"amount": 90}}
    if state in ("failed", "answered"):
        note |= {"failed": ["charge"], **({"answered_by": ["release"]} if state == "answered" else {})}
        await append(store, "run", "$flow", "failure", note=note)
    elif state == "crashed":
        await append(store, "run", "$flow", "reopened", error=StepError("NameError"), note=note)
    elif state == "parked":
        await append(store, "run", "$flow", "waiting", note={**note, "parked": {"step": None}, "waiting_for": []})
    else:
        await append(store, "run", "$flow", "started", note=note)
    record = await control.resolve(store, "run", "$flow", "paid", reason="in cash", by="alice")
    assert (record.revision, record.status, record.value()) == (1, "success", "paid")
    assert record.note == {"input": {"amount": 90}, "reason": "in cash", "by": "alice"}
    with pytest.raises(Refused):
        await control.resolve(store, "run", "$flow", "lost", reason="seen")


async def test_a_run_that_waits_or_ended_cancelled_has_no_outcome_set_by_hand(store: MemoryStore) -> None:
    """It goes on by itself, or stays as it is."""
    await append(store, "waits", "$flow", "waiting")
    await append(store, "over", "$flow", "failure", error=StepError("durable_core.errors.RunCancelled"))
    for run_id in ("waits", "over"):
        with pytest.raises(Refused, match="neither failed nor was interrupted"):
            await control.resolve(store, run_id, "$flow", 1, reason="seen")


@pytest.mark.parametrize("named", [("run",), ("run", "quickest"), ("run", "bill"), ("run/bill",), ("run/bill", "charge")])
async def test_a_race_of_children_that_all_failed_is_run_again(store: MemoryStore, named: tuple[str, ...]) -> None:
    """By one call that names the run, the race, a contender or a child: they go on, and the run ends well."""

    @flow
    async def race(runner: Runner) -> Any:
        return await runner.first("quickest", one=lambda: runner.flow("bill", bill))

    with pytest.raises(StepFailed):
        await race.run(store, run_id="run")
    await control.retry(store, *named)
    assert {run.status async for run in control.runs(store)} == {"waiting"}
    WORKS[0] = True
    assert await race.run(store, run_id="run") == ["one", "charged"]
    assert {run.status async for run in control.runs(store)} == {"succeeded"}


@pytest.mark.parametrize("named", [("run",), ("run", "mail")])
async def test_a_map_that_failed_is_run_to_its_end(store: MemoryStore, effects: Effects, named: tuple[str, ...]) -> None:
    """The items that went well do not happen twice."""

    def send(user: str) -> str:
        effects.happen(user)
        if user != "ada":
            bank()
        return user

    @flow
    async def mails(runner: Runner) -> list[str]:
        values = await runner.map("mail", send, ["ada", "bob", "cy"], key=lambda user: user)
        return [str(value) for value in values]

    with pytest.raises(StepFailed):
        await mails.run(store, run_id="run")
    assert (await control.status(store, "run")).failed == ("mail",)
    await control.retry(store, *named)
    WORKS[0] = True
    assert await mails.run(store, run_id="run") == ["ada", "bob", "cy"]
    assert effects == {"ada": 1, "bob": 2, "cy": 2}


@pytest.mark.parametrize("named", [("run",), ("run", "quickest"), ("run/bill",)])
async def test_repairing_a_race_is_safe_to_repeat_after_a_crash(named: tuple[str, ...]) -> None:
    """Wherever it was cut off, the same call again does the rest."""

    @flow
    async def race(runner: Runner) -> Any:
        return await runner.first("quickest", one=lambda: runner.flow("bill", bill))

    at = 0
    while True:
        store, at = MemoryStore(), at + 1
        WORKS[0] = False
        with pytest.raises(StepFailed):
            await race.run(store, run_id="run")
        try:
            await control.retry(CrashingStore(store, at=at), *named)
        except InjectedFault:
            await control.retry(store, *named)
        else:
            break
        assert {run.status async for run in control.runs(store)} == {"waiting"}, at
        WORKS[0] = True
        assert await race.run(store, run_id="run") == ["one", "charged"]
    assert at > 4


@pytest.mark.parametrize("how", ["retry", "resolve"])
async def test_an_undoing_that_failed_is_mended_by_itself(store: MemoryStore, effects: Effects, how: str) -> None:
    """The next run goes on with it; the run as a whole can't be retried, before or after."""
    down = [True]

    def give_back() -> None:
        if down:
            raise TimeoutError("the hotel does not answer")
        effects.happen("give back")

    def decline() -> None:
        raise PermissionError("declined")

    @flow
    async def trip(runner: Runner) -> None:
        await runner.step("hotel", effects.happen, "book")
        try:
            await runner.step("charge", decline)
        except StepFailed:
            await runner.step("undo-hotel", give_back)
            await runner.step("tell", effects.happen, "tell")
            raise

    with pytest.raises(StepFailed, match="the hotel does not answer"):
        await trip.run(store, run_id="run")
    with pytest.raises(Refused, match="'undo-hotel'"):
        await control.retry(store, "run")
    with pytest.raises(Refused, match="'undo-hotel'"):
        await control.retry(store, "run", "charge")
    if how == "retry":
        down.clear()
        await control.retry(store, "run", "undo-hotel")
    else:
        await control.resolve(store, "run", "undo-hotel", None, reason="by phone")
    with pytest.raises(StepFailed, match="declined"):
        await trip.run(store, run_id="run")
    assert effects == {"book": 1, "tell": 1, **({"give back": 1} if how == "retry" else {})}
    with pytest.raises(Refused, match="'tell'"):
        await control.retry(store, "run")


@pytest.mark.parametrize("step_id", [None, "race"])
async def test_a_refusal_reopens_nothing(store: MemoryStore, step_id: str | None) -> None:
    """A run that failed by two children, one of which can't continue, is refused before the other one is reopened."""

    @flow(wait_limit=0)
    async def child(runner: Runner) -> None:
        await runner.event("go")

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        calls = {name: lambda name=name: runner.flow(name, child) for name in ("one", "two")}
        if step_id is not None:
            await runner.first(step_id, **calls)
        async with asyncio.TaskGroup() as group:
            for call in calls.values():
                group.create_task(call())

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    await control.send_failure(store, "run/one", "go", error="gone")
    await control.cancel(store, "run/two")
    with pytest.raises(StepFailed):
        await parent.run(store, run_id="run")
    entries = [len(await store.list(run_id)) for run_id in ("run", "run/one", "run/two")]
    with pytest.raises(Refused, match="run 'run/two' was cancelled and can't continue"):
        await control.retry(store, "run", step_id)
    assert [len(await store.list(run_id)) for run_id in ("run", "run/one", "run/two")] == entries
    assert (await control.status(store, "run")).status == "failed"
