"""Acting on a run from outside: each act appends one entry, or is refused with what is there."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    AlreadyDecided,
    CopyConflict,
    DeadlinePassed,
    Decision,
    DurableError,
    MemoryStore,
    Refused,
    RunBusy,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    StepRecord,
    Store,
    control,
    flow,
)
from durable_core.testing import CrashingStore, FakeClock, InjectedFault
from tests.core.conftest import Killed


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def ask(store: Store, run_id: str = "run", **options: Any) -> None:
    with pytest.raises(RunSuspended):
        await Runner(store, run_id, wait_limit=0).approval("refund", {"amount": 90}, **options)


async def charge_fails(store: Store, calls: list[int]) -> None:
    def charge() -> None:
        calls.append(1)
        raise OSError("declined")

    with pytest.raises(StepFailed):
        await Runner(store, "run").step("charge", charge)


async def left_open(store: Store) -> None:
    async def crash() -> None:
        raise Killed

    with pytest.raises(Killed):
        await Runner(store, "run").step("charge", crash, at_most_once=True)


class Turning(MemoryStore):
    """Lets others have their turn before each answer, as every real store does."""

    async def append(self, record: StepRecord) -> StepRecord:
        await asyncio.sleep(0)
        return await super().append(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        await asyncio.sleep(0)
        return await super().get(run_id, step_id)


async def test_two_people_who_approve_at_once_are_two() -> None:
    """Neither vote is lost to the other."""
    store = Turning()
    await ask(store, quorum=2)
    await asyncio.gather(*(control.approve(store, "run", "refund", by=name) for name in ("alice", "bob")))
    waiting, one, both = await store.list("run")
    assert [record.status for record in (waiting, one, both)] == ["waiting", "waiting", "success"]
    assert {vote["by"] for vote in both.note["votes"]} == {"alice", "bob"}


@pytest.mark.parametrize("what", ["decision", "event", "resolve"])
async def test_of_two_unlike_acts_at_once_one_is_refused(what: str) -> None:
    """It is told what the other one did, which is what counts."""
    store = Turning()
    if what == "decision":
        await ask(store)
        acts = [control.approve(store, "run", "refund", by="alice"), control.reject(store, "run", "refund", by="bob")]
    elif what == "event":
        acts = [control.send(store, "run", "packed", number) for number in range(2)]
    else:
        await charge_fails(store, [])
        acts = [control.resolve(store, "run", "charge", number, reason="by phone") for number in range(2)]
    one, other = await asyncio.gather(*acts, return_exceptions=True)
    assert isinstance(other, AlreadyDecided)
    assert other.record == one == (await store.list("run"))[-1]


async def test_two_people_who_retry_at_the_same_moment_did_the_same() -> None:
    """Both get the entry that reopened the step."""
    store = Turning()
    await charge_fails(store, [])
    one, other = await asyncio.gather(*(control.retry(store, "run", "charge") for _ in range(2)))
    assert one == other
    assert [record.status for record in await store.list("run")] == ["failure", "reopened"]


async def test_a_failed_step_is_reopened_while_the_run_is_held(store: MemoryStore) -> None:
    """It is not running, whoever holds the run."""
    await charge_fails(store, [])
    async with Runner(store, "run"):
        assert (await control.retry(store, "run", "charge")).status == "reopened"


async def test_terms_are_those_first_recorded(store: MemoryStore) -> None:
    """A decision binds to what was shown; other terms, asked for later, neither count nor stop the run."""
    await ask(store, quorum=2, approvers=["alice", "bob"])
    await ask(store)
    assert (await control.approve(store, "run", "refund", by="alice")).status == "waiting"
    with pytest.raises(Refused, match="'carol' may not decide"):
        await control.approve(store, "run", "refund", by="carol")
    await control.approve(store, "run", "refund", by="bob")
    assert (await Runner(store, "run").approval("refund", {"amount": 90})).approved


async def test_what_was_shown_and_said_stays_with_a_wait(store: MemoryStore) -> None:
    """Whether it expires, is reopened, or is decided by hand."""
    clock = FakeClock()
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0, clock=clock).approval("refund", {"amount": 90}, quorum=2, timeout=60)
    await control.approve(store, "run", "refund", by="alice", clock=clock)
    clock.advance(60)
    with pytest.raises(DeadlinePassed):
        await control.approve(store, "run", "refund", by="bob", clock=clock)
    await control.retry(store, "run", "refund", reason="they were ill", clock=clock)
    for record in await store.list("run"):
        assert record.note["show"] == {"amount": 90}
        assert [vote["by"] for vote in record.note.get("votes", [])] == (["alice"] if record.revision else [])


async def test_an_expired_approval_that_is_resolved_shows_what_it_was_about(store: MemoryStore) -> None:
    """And why it was decided by hand."""
    clock = FakeClock()
    with pytest.raises(StepFailed):
        await Runner(store, "run", clock=clock).approval("refund", {"amount": 90}, timeout=60)
    decision = Decision(True, "alice", None, clock.now())
    record = await control.resolve(store, "run", "refund", decision, reason="by phone", clock=clock)
    assert record.note == {"show": {"amount": 90}, "reason": "by phone"}


async def test_a_reopened_approval_is_not_decided_before_it_is_asked_again(store: MemoryStore) -> None:
    """What would be shown nobody knows yet."""
    clock = FakeClock()
    with pytest.raises(StepFailed):
        await Runner(store, "run", clock=clock).approval("refund", timeout=60)
    await control.retry(store, "run", "refund", clock=clock)
    with pytest.raises(Refused, match="is not waiting for an approval.*'reopened'"):
        await control.approve(store, "run", "refund", by="alice", clock=clock)


async def test_a_reopened_event_may_be_sent_before_anyone_waits_again(store: MemoryStore) -> None:
    """The deadline that passed was that of the wait before."""
    clock = FakeClock()
    with pytest.raises(StepFailed):
        await Runner(store, "run", clock=clock).event("packed", timeout=60)
    await control.retry(store, "run", "packed", clock=clock)
    await control.send(store, "run", "packed", "late", clock=clock)
    assert await Runner(store, "run", clock=clock).event("packed", timeout=60) == "late"


async def test_a_vote_for_what_was_rejected_is_told_so(store: MemoryStore) -> None:
    """Also to the one who had said the same before."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice")
    await control.reject(store, "run", "refund", by="bob")
    with pytest.raises(AlreadyDecided, match="rejected by 'bob'"):
        await control.approve(store, "run", "refund", by="alice")


async def test_a_step_that_succeeded_by_itself_was_not_resolved(store: MemoryStore) -> None:
    """To set the value that it has is refused like any other, and does not let a failed flow go on."""

    @flow
    async def pays(runner: Runner) -> None:
        await runner.step("look-up", lambda: 7)
        await runner.step("charge", lambda: 1 / 0)

    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    with pytest.raises(Refused, match="neither failed nor was interrupted"):
        await control.resolve(store, "run", "look-up", 7, reason="by phone")
    assert (await control.status(store, "run")).status == "failed"


async def test_no_act_ends_before_it_began(store: MemoryStore) -> None:
    """Whoever acts may do so on a machine whose clock is behind."""
    clock = FakeClock()
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0, clock=clock).approval("refund")
    clock.jump(-3600)
    assert (await control.approve(store, "run", "refund", by="alice", clock=clock)).duration == timedelta(0)


async def test_an_unknown_step_is_told_the_steps_that_people_made(store: MemoryStore) -> None:
    """The library's own entries are none of them."""
    await settle.run(store, run_id="run", amount=3)
    with pytest.raises(Refused, match=r"no step 'refund' in run 'run'; its last steps: 'charge'$"):
        await control.approve(store, "run", "refund", by="alice")


async def test_the_highest_revision_counts_however_entries_are_listed(store: MemoryStore) -> None:
    """For how a run stands, for who is waited for, and for what a fork takes along."""
    for step_id, revision, status in [("a", 0, "success"), ("b", 1, "success"), ("b", 0, "waiting"), ("c", 0, "success")]:
        kind: Any = "approval" if step_id == "b" else "step"
        await store.append(StepRecord(run_id="run", step_id=step_id, revision=revision, status=status, kind=kind))  # type: ignore[arg-type]
    assert (await control.status(store, "run")).waiting_for == ()
    assert [record async for record in control.pending(store)] == []
    assert await control.fork(store, "run", "new", before="c") == 3


async def test_runs_that_are_cleared_meanwhile_are_left_out() -> None:
    """Between being named and being read."""

    class Clearing(MemoryStore):
        async def list(self, run_id: str) -> Any:
            await self.clear("b")
            return await super().list(run_id)

    store = Clearing()
    for run_id in "ab":
        await store.append(StepRecord(run_id=run_id, step_id="step"))
    assert [status.run_id async for status in control.runs(store)] == ["a"]


async def test_a_decision_is_true_if_it_approves(store: MemoryStore) -> None:
    """`if await runner.approval(...)` means what it says."""
    for step_id, decide in (("yes", control.approve), ("no", control.reject)):
        with pytest.raises(RunSuspended):
            await Runner(store, "run", wait_limit=0).approval(step_id)
        await decide(store, "run", step_id, by="alice")
        decision = await Runner(store, "run").approval(step_id)
        assert bool(decision) is decision.approved is (step_id == "yes")


@pytest.mark.parametrize("store", ["file:./runs", MemoryStore], ids=["url", "class"])
async def test_what_is_no_store_is_refused(store: Any) -> None:
    """A URL is opened first, and a class is made."""
    acts: list[Any] = [
        lambda: control.approve(store, "run", "ask", by="alice"),
        lambda: control.send(store, "run", "packed", 1),
        lambda: control.cancel(store, "run"),
        lambda: control.status(store, "run"),
        lambda: anext(control.pending(store)),
        lambda: control.fork(store, "run", "new", before="a"),
        lambda: control.copy(MemoryStore(), "run", store),
        lambda: settle.run(store, run_id="run", amount=1),
    ]
    for act in acts:
        with pytest.raises(TypeError, match="store must be an? .*store, not "):
            await act()


async def test_the_same_decision_again_changes_nothing(store: MemoryStore) -> None:
    """A person may click twice."""
    await ask(store)
    first = await control.approve(store, "run", "refund", by="alice")
    assert await control.approve(store, "run", "refund", by="alice") == first
    assert len(await store.list("run")) == 2


async def test_another_decision_is_told_who_decided_and_when(store: MemoryStore) -> None:
    """One decision counts."""
    await ask(store)
    first = await control.approve(store, "run", "refund", by="alice")
    for act in (control.reject, control.approve):
        with pytest.raises(AlreadyDecided, match="approved by 'alice'") as decided:
            await act(store, "run", "refund", by="bob")
        assert decided.value.record == first
        assert first.ended_at.isoformat(timespec="seconds") in str(decided.value)


async def test_one_rejection_decides(store: MemoryStore) -> None:
    """Whatever the quorum; a person may change from yes to no before that."""
    await ask(store, quorum=3)
    await control.approve(store, "run", "refund", by="alice")
    record = await control.reject(store, "run", "refund", by="alice", reason="on second thought")
    assert record.status == "success"
    assert [(vote["by"], vote["approved"]) for vote in record.note["votes"]] == [("alice", False)]
    decision = await Runner(store, "run").approval("refund", {"amount": 90}, quorum=3)
    assert (decision.approved, decision.by, decision.reason) == (False, "alice", "on second thought")


async def test_only_approvers_may_decide(store: MemoryStore) -> None:
    """Anybody else is told who may."""
    await ask(store, approvers=["alice", "bob"])
    with pytest.raises(Refused, match="'mallory' may not decide.*alice, bob"):
        await control.approve(store, "run", "refund", by="mallory")
    await control.approve(store, "run", "refund", by="bob")


async def test_a_decision_after_the_deadline(store: MemoryStore) -> None:
    """Who finds the deadline passed records that, and is told."""
    clock = FakeClock()
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0, clock=clock).approval("refund", timeout=60)
    clock.advance(60)
    for _ in range(2):
        with pytest.raises(DeadlinePassed, match="'refund'"):
            await control.approve(store, "run", "refund", by="alice", clock=clock)
    assert [record.status for record in await store.list("run")] == ["waiting", "failure"]
    with pytest.raises(DeadlinePassed):
        await control.reject(store, "run", "refund", by="alice", clock=clock)


async def test_an_event_after_the_deadline(store: MemoryStore) -> None:
    """The same for events."""
    clock = FakeClock()
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0, clock=clock).event("packed", timeout=60)
    clock.advance(60)
    with pytest.raises(DeadlinePassed, match="'packed'"):
        await control.send(store, "run", "packed", 1, clock=clock)


async def test_an_event_twice(store: MemoryStore) -> None:
    """The same value again changes nothing, another is refused."""
    first = await control.send(store, "run", "packed", {"box": 1})
    assert await control.send(store, "run", "packed", {"box": 1}) == first
    with pytest.raises(AlreadyDecided, match="'packed'"):
        await control.send(store, "run", "packed", {"box": 2})
    assert await Runner(store, "run").event("packed") == {"box": 1}


async def test_the_log_says_who_sent_an_event(store: MemoryStore) -> None:
    """`by` stands in the note, whether somebody waited or not; the same value from another changes nothing."""
    early = await control.send(store, "run", "packed", 1, by="alice")
    assert early.note == {"by": "alice"}
    assert await control.send(store, "run", "packed", 1, by="bob") == early
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0).event("paid")
    assert (await control.send_failure(store, "run", "paid", error="declined", by="bob")).note == {"by": "bob"}
    with pytest.raises(ValueError, match="reserved for the library"):
        await control.send(store, "run", "sent", 1, by="$me")


async def test_resolve_sets_the_outcome_of_a_failed_step(store: MemoryStore) -> None:
    """The failure stays in the log, the next replay returns the value."""
    calls: list[int] = []
    await charge_fails(store, calls)
    await control.resolve(store, "run", "charge", {"id": 7}, reason="charged by phone")

    def charge() -> dict[str, int]:
        raise AssertionError

    assert await Runner(store, "run").step("charge", charge) == {"id": 7}
    assert [record.status for record in await store.list("run")] == ["failure", "success"]
    with pytest.raises(Refused, match="status 'success'"):
        await control.resolve(store, "run", "charge", {"id": 8}, reason="again")


async def test_retry_gives_a_new_idempotency_key(store: MemoryStore) -> None:
    """Services replay a failed answer for a repeated key."""
    from durable_core import current_step

    keys: list[str] = []

    def charge() -> None:
        keys.append(current_step().idempotency_key)
        raise OSError

    for _ in range(2):
        with pytest.raises(StepFailed):
            await Runner(store, "run").step("charge", charge)
        await control.retry(store, "run", "charge", reason="the bank is back")
    assert len(set(keys)) == 2
    with pytest.raises(Refused, match="'reopened'"):
        await control.retry(store, "run", "charge")


async def test_an_interrupted_step_that_may_be_running_is_not_reopened(store: MemoryStore) -> None:
    """While another holds the run, `started` doesn't mean interrupted."""
    await left_open(store)
    async with Runner(store, "run"):
        with pytest.raises(RunBusy):
            await control.retry(store, "run", "charge")
    await control.retry(store, "run", "charge")


async def test_two_people_who_retry_at_once_reopen_once(store: MemoryStore) -> None:
    """The second finds what it wanted."""
    await charge_fails(store, [])
    both = await asyncio.gather(*(control.retry(store, "run", "charge") for _ in range(2)), return_exceptions=True)
    assert all(isinstance(result, (StepRecord, Refused)) for result in both)
    assert [record.status for record in await store.list("run")] == ["failure", "reopened"]


@pytest.mark.parametrize("act", ["retry", "resolve"])
async def test_mending_is_safe_to_repeat_after_a_crash(store: MemoryStore, act: str) -> None:
    """A crash between the step's entry and its flow's leaves nothing that can't be mended any more."""

    @flow
    async def pays(runner: Runner) -> None:
        def charge() -> None:
            raise OSError("declined")

        await runner.step("charge", charge)

    async def mend(store: Store) -> None:
        if act == "retry":
            await control.retry(store, "run", "charge")
        else:
            await control.resolve(store, "run", "charge", 7, reason="paid by hand")

    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    with pytest.raises(InjectedFault):
        await mend(CrashingStore(store, at=2))
    assert (await control.status(store, "run")).status == "failed"
    await mend(store)
    assert (await control.status(store, "run")).status == "waiting"
    with pytest.raises(Refused):
        await mend(store)


async def test_a_vote_that_counted_may_be_repeated_after_the_decision(store: MemoryStore) -> None:
    """Whose answer was lost says the same again; it is no second decision."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice")
    decided = await control.approve(store, "run", "refund", by="bob")
    assert await control.approve(store, "run", "refund", by="alice") == decided
    with pytest.raises(AlreadyDecided, match="by 'bob'"):
        await control.reject(store, "run", "refund", by="alice")


class Cents(int):
    """Would come back as an int."""


def refusals() -> list[Any]:
    return [
        (lambda s: control.approve(s, "nowhere", "refund", by="a"), Refused, "no run 'nowhere'.*'run'"),
        (lambda s: control.approve(s, "run", "refunt", by="a"), Refused, "no step 'refunt'.*'plain', 'refund'"),
        (lambda s: control.approve(s, "run", "plain", by="a"), Refused, "'plain'.*a step with status 'success'"),
        (lambda s: control.reject(s, "run", "plain", by="a"), Refused, "'plain'"),
        (lambda s: control.approve(s, "run", "refund", by=""), TypeError, "by must be"),
        (lambda s: control.send(s, "run", "refund", 1), Refused, "is not an event: it is an approval with status 'waiting'"),
        (lambda s: control.send(s, "run", "new", {"f": lambda: 1}), TypeError, "f"),
        (lambda s: control.send(s, "run", "new", float("nan")), TypeError, "nan"),
        (lambda s: control.send(s, "run", "new", [Cents(90)]), TypeError, r"\$\[0\]"),
        (lambda s: control.send(s, "", "new", 1), ValueError, "run_id ''"),
        (lambda s: control.send(s, "run", "$x", 1), ValueError, "reserved for the library"),
        (lambda s: control.resolve(s, "run", "plain", 1, reason="r"), Refused, "neither failed nor was interrupted"),
        (lambda s: control.resolve(s, "run", "nothing", 1, reason="r"), Refused, "no step 'nothing'"),
        (lambda s: control.resolve(s, "run", "refund", 1, reason="r"), Refused, "an approval with status 'waiting'"),
        (lambda s: control.retry(s, "run", "plain"), Refused, "neither failed nor was interrupted"),
        (lambda s: control.retry(s, "nowhere", "plain"), Refused, "no run 'nowhere'"),
        (lambda s: control.cancel(s, "nowhere"), Refused, "no run 'nowhere'"),
        (lambda s: control.status(s, "nowhere"), Refused, "no run 'nowhere'"),
        (lambda s: control.fork(s, "run", "new", before="nothing"), Refused, "no step 'nothing'.*'plain'"),
        (lambda s: control.fork(s, "nowhere", "new", before="a"), Refused, "no run 'nowhere'"),
        (lambda s: control.fork(s, "run", "", before="plain"), ValueError, "new_run_id ''"),
        (lambda s: control.fork(s, "run", "run", before="refund"), CopyConflict, "'refund'"),
        (lambda s: control.copy(s, "nowhere", MemoryStore()), Refused, "no run 'nowhere'"),
    ]


@pytest.mark.parametrize(("act", "error", "match"), refusals())
async def test_what_does_not_fit_is_refused(store: MemoryStore, act: Any, error: type[Exception], match: str) -> None:
    """One clear error that says what is there instead; nothing is appended."""
    await Runner(store, "run").step("plain", lambda: 1)
    await ask(store)
    before = await store.list("run")
    with pytest.raises(error, match=match):
        await act(store)
    assert await store.list("run") == before
    assert [run async for run in store.runs()] == ["run"]


async def test_pending_names_what_waits_for_a_person(store: MemoryStore) -> None:
    """Over all runs; not events, not what was decided, not what is too late, not cancelled runs."""
    clock = FakeClock()
    for run_id in ("a-1", "a-2", "a-3", "a-4", "b-1"):
        run = Runner(store, run_id, wait_limit=0, clock=clock)
        with pytest.raises(RunSuspended):
            await asyncio.gather(run.approval("refund", {"run": run_id}, timeout=60 if run_id == "a-3" else None), run.event("e"))
    await control.approve(store, "a-2", "refund", by="alice", clock=clock)
    await control.cancel(store, "a-4", clock=clock)
    clock.advance(60)
    found = [record async for record in control.pending(store, clock=clock)]
    assert {(record.run_id, record.step_id) for record in found} == {("a-1", "refund"), ("b-1", "refund")}
    assert {record.note["show"]["run"] for record in found} == {"a-1", "b-1"}
    assert [record.run_id async for record in control.pending(store, "b-", clock=clock)] == ["b-1"]


async def test_pending_on_a_store_that_cant_list_runs() -> None:
    """It says so."""

    class Plain:
        append, get, list, clear = MemoryStore.append, MemoryStore.get, MemoryStore.list, MemoryStore.clear

    with pytest.raises(Refused, match="can't list its runs"):
        async for _ in control.pending(Plain()):  # type: ignore[arg-type]
            raise AssertionError


async def numbered_run(store: Store, run_id: str, calls: list[int], *, fail_at: int | None) -> None:
    async def work(number: int) -> int:
        calls.append(number)
        if number == fail_at:
            raise OSError
        return number

    runner = Runner(store, run_id)
    for number in range(1, 21):
        assert await runner.step(f"step-{number}", work, number) == number


async def test_forking_a_failed_run_runs_what_came_after_again(store: MemoryStore) -> None:
    """20 steps, the last one failed, forked before the 15th: 6 run, not 20; the original is as it was."""
    calls: list[int] = []
    with pytest.raises(StepFailed):
        await numbered_run(store, "run", calls, fail_at=20)
    before = await store.list("run")
    calls.clear()
    assert await control.fork(store, "run", "again", before="step-15") == 14
    await numbered_run(store, "again", calls, fail_at=None)
    assert calls == [15, 16, 17, 18, 19, 20]
    assert await store.list("run") == before


async def test_fork_takes_whole_chains_and_leaves_undecided_steps_out(store: MemoryStore) -> None:
    """Of a step that was retried all entries go along, even those appended later than the fork's step began."""
    calls: list[int] = []
    await charge_fails(store, calls)
    await ask(store)
    await Runner(store, "run").step("after", lambda: 1)
    await control.retry(store, "run", "charge")
    await Runner(store, "run").step("charge", lambda: "charged")
    await control.fork(store, "run", "new", before="after")
    assert [(r.step_id, r.status) for r in await store.list("new")] == [
        ("charge", "failure"),
        ("charge", "reopened"),
        ("charge", "success"),
    ]


async def test_fork_takes_failures_and_nothing_of_the_library(store: MemoryStore) -> None:
    """A failure that the flow caught is what was decided; how the run ended is left behind."""

    @flow
    async def order(runner: Runner) -> str:
        with contextlib.suppress(StepFailed):
            await runner.step("look-up", lambda: 1 / 0)
        return await runner.step("charge", _charge_or_fail)

    fails = [True]

    async def _charge_or_fail() -> str:
        if fails.pop():
            raise OSError
        return "charged"

    with pytest.raises(StepFailed):
        await order.run(store, run_id="run")
    assert await control.fork(store, "run", "new", before="charge") == 1
    assert [(record.step_id, record.status) for record in await store.list("new")] == [
        ("look-up", "failure"),
        ("$flow", "waiting"),
    ]
    fails.append(False)
    assert await order.run(store, run_id="new") == "charged"


async def test_a_copy_that_loses_a_slot_meanwhile_is_a_conflict(store: MemoryStore) -> None:
    """Somebody began the same run in the other place."""

    class Rival(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            await super().append(StepRecord(run_id="run", step_id="a"))
            return await super().append(record)

    await Runner(store, "run").step("a", lambda: 1)
    with pytest.raises(CopyConflict, match="'a'"):
        await control.copy(store, "run", Rival())


async def test_fork_and_copy_are_safe_to_repeat_after_a_crash(store: MemoryStore) -> None:
    """A prefix is completed, a complete copy is left alone, anything else is a conflict."""
    calls: list[int] = []
    await numbered_run(store, "run", calls, fail_at=None)
    entries = await store.list("run")
    other = MemoryStore()
    for record in entries[:7]:
        await other.append(record)
    for _ in range(2):
        assert await control.copy(store, "run", other) == 20
        assert await other.list("run") == entries
    for _ in range(2):
        assert await control.fork(store, "run", "new", before="step-4") == 3
    await Runner(store, "new").step("elsewhere", lambda: 1)
    with pytest.raises(CopyConflict, match="'elsewhere'"):
        await control.fork(store, "run", "new", before="step-4")
    third = MemoryStore()
    await third.append(StepRecord(run_id="run", step_id="step-3"))
    with pytest.raises(CopyConflict, match="'step-3'"):
        await control.copy(store, "run", third)


async def test_a_copy_takes_children_along(store: MemoryStore) -> None:
    """Where the run continues, what its children did is not done again; a child that somebody drives keeps it from moving."""
    paid: list[int] = []

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> str:
        await runner.step("pay", lambda: paid.append(1))
        return (await runner.approval("sign")).by

    @flow(wait_limit=0)
    async def orders(runner: Runner) -> str:
        return await runner.flow("bill", pays)

    with pytest.raises(RunSuspended):
        await orders.run(store, run_id="run")
    there = MemoryStore()
    async with store.lock("run/bill"):
        with pytest.raises(RunBusy):
            await control.copy(store, "run", there)
    entries = [await store.list(run_id) for run_id in ("run", "run/bill")]
    for dry_run in (True, False, False):
        assert await control.copy(store, "run", there, dry_run=dry_run) == sum(map(len, entries))
        assert [await there.list(run_id) for run_id in ("run", "run/bill")] == ([(), ()] if dry_run else entries)
    await control.approve(there, "run/bill", "sign", by="ann")
    assert await orders.run(there, run_id="run") == "ann"
    assert paid == [1]


async def test_a_copy_that_conflicts_with_a_child_appends_nothing(store: MemoryStore) -> None:
    """It is checked as a whole first."""

    @flow
    async def child(runner: Runner) -> None: ...

    @flow
    async def parent(runner: Runner) -> None:
        await runner.flow("a", child)
        await runner.flow("b", child)

    await parent.run(store, run_id="run")
    there = MemoryStore()
    await there.append(StepRecord(run_id="run/b", step_id="other"))
    with pytest.raises(CopyConflict, match="'other'"):
        await control.copy(store, "run", there)
    assert [run_id async for run_id in there.runs()] == ["run/b"]


async def test_a_dry_run_of_a_copy_appends_nothing(store: MemoryStore) -> None:
    """It raises what the copy would."""
    await Runner(store, "run").step("a", lambda: 1)
    there = MemoryStore()
    assert await control.copy(store, "run", there, dry_run=True) == 1
    assert not await there.list("run")
    await there.append(StepRecord(run_id="run", step_id="a"))
    with pytest.raises(CopyConflict, match="'a'"):
        await control.copy(store, "run", there, dry_run=True)


async def test_forking_a_live_run_again_adds_what_it_decided_meanwhile(store: MemoryStore) -> None:
    """A step that was undecided at the first try stands before others in the run: its chain is taken whole."""
    await store.append(StepRecord(run_id="run", step_id="early"))
    await store.append(StepRecord(run_id="run", step_id="wait", kind="event", status="waiting"))
    await store.append(StepRecord(run_id="run", step_id="late"))
    await store.append(StepRecord(run_id="run", step_id="end"))
    assert await control.fork(store, "run", "new", before="end") == 2
    await control.send(store, "run", "wait", 5)
    assert await control.fork(store, "run", "new", before="end") == 4
    slots = [(record.step_id, record.revision) for record in await store.list("new")]
    assert sorted(slots) == [("early", 0), ("late", 0), ("wait", 0), ("wait", 1)]


async def test_copy_holds_the_lock(store: MemoryStore) -> None:
    """A run that is at work is not torn in two."""
    async with Runner(store, "run") as runner:
        await runner.step("a", lambda: 1)
        with pytest.raises(RunBusy):
            await control.copy(store, "run", MemoryStore())


@flow
async def settle(runner: Runner, *, amount: int, fail: bool = False) -> int:
    """A flow of one step."""
    return await runner.step("charge", _charge, amount)


_failing: list[Exception] = []


async def _charge(amount: int) -> int:
    if _failing:
        raise _failing[0]
    return amount


async def test_a_flow_returns_its_recorded_outcome(store: MemoryStore) -> None:
    """The same id and input again doesn't run it; another input is drift."""
    assert await settle.run(store, run_id="run", amount=3) == 3
    assert await settle.run(store, run_id="run", amount=3) == 3
    with pytest.raises(StepDrift, match=r"other input, \{'amount': 3\}"):
        await settle.run(store, run_id="run", amount=4)


async def test_another_flow_under_the_same_run_is_drift(store: MemoryStore) -> None:
    """A run belongs to one flow."""

    @flow(name="refund")
    async def other(runner: Runner, *, amount: int) -> int:
        return amount

    await settle.run(store, run_id="run", amount=3)
    with pytest.raises(StepDrift, match="'settle', not 'refund'"):
        await other.run(store, run_id="run", amount=3)


async def test_a_failed_flow_raises_the_same_failure_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until what failed is mended: then it goes on when it is run again."""
    monkeypatch.setattr(f"{__name__}._failing", [OSError("declined")])
    with pytest.raises(StepFailed) as first:
        await settle.run(store, run_id="run", amount=3)
    monkeypatch.setattr(f"{__name__}._failing", [])
    with pytest.raises(StepFailed) as again:
        await settle.run(store, run_id="run", amount=3)
    assert first.value == again.value
    await control.retry(store, "run", "charge")
    assert (await control.status(store, "run")).input == {"amount": 3}
    assert await settle.run(store, run_id="run", amount=3) == 3
    assert (await control.status(store, "run")).status == "succeeded"


async def test_a_run_is_cancelled_while_another_holds_it(store: MemoryStore) -> None:
    """Who runs it is told, and its end says so to every later caller."""

    @flow
    async def waits(runner: Runner) -> None:
        await runner.event("never")

    task = asyncio.create_task(waits.run(store, run_id="run"))
    while len(await store.list("run")) < 2:
        await asyncio.sleep(0)
    with pytest.raises(RunBusy):
        await waits.run(store, run_id="run")
    await control.cancel(store, "run", reason="enough")
    with pytest.raises(StepFailed, match="enough"):
        await task
    with pytest.raises(StepFailed, match="enough") as failed:
        await waits.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert [r.status for r in await store.list("run") if r.step_id == "$flow"] == ["started", "reopened", "failure"]


async def test_a_flow_can_be_called_with_a_runner_of_ones_own(store: MemoryStore) -> None:
    """It is a function like any other."""
    assert await settle(Runner(store, "run"), amount=5) == 5
    assert settle.name == "settle"
    assert settle.__doc__ == "A flow of one step."


def test_flows_that_cant_be() -> None:
    """Each slip gets one clear error where it is made."""
    with pytest.raises(TypeError, match="async function"):
        flow(lambda runner: 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="can't have the parameter 'run_id"):

        @flow
        async def taken(runner: Runner, *, run_id: str) -> None: ...

    with pytest.raises(TypeError, match="can't have the parameter"):

        @flow
        async def many(runner: Runner, *numbers: int) -> None: ...

    with pytest.raises(TypeError, match="complex"):

        @flow
        async def unrecordable(runner: Runner) -> complex:
            return 1j


async def test_flow_input_is_checked_before_anything_is_recorded(store: MemoryStore) -> None:
    """Wrong names and values that JSON can't hold."""
    with pytest.raises(TypeError, match="amount"):
        await settle.run(store, run_id="run", amonut=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="does not fit its annotation"):
        await settle.run(store, run_id="run", amount=float("nan"))  # type: ignore[arg-type]
    assert await store.list("run") == ()


def test_every_refusal_is_one_error_to_catch() -> None:
    """`Refused` is what a web handler catches."""
    assert issubclass(AlreadyDecided, Refused)
    assert issubclass(DeadlinePassed, (Refused, TimeoutError))
    assert issubclass(CopyConflict, Refused)
    assert issubclass(Refused, DurableError)


async def test_an_approval_is_resolved_with_a_decision(store: MemoryStore) -> None:
    """Nothing else could be returned by the run."""
    clock = FakeClock()
    with pytest.raises(StepFailed):
        await Runner(store, "run", clock=clock).approval("refund", timeout=60)
    with pytest.raises(TypeError, match="with a Decision, not True"):
        await control.resolve(store, "run", "refund", True, reason="by phone")
    decision = Decision(True, "alice", None, clock.now())
    await control.resolve(store, "run", "refund", decision, reason="by phone")
    assert await Runner(store, "run", clock=clock).approval("refund", timeout=60) == decision
