"""Logs that an earlier edition of durable wrote are read as they are, and their runs go on, on every store."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_core import (
    AlreadyDecided,
    DeadlinePassed,
    RunCancelled,
    RunSuspended,
    StepFailed,
    StepInterrupted,
    control,
)
from tests.old_logs.conftest import Old, text_of
from tests.old_logs.runs import INPUT, LENGTH, RECEIPT, VALUES, Packed
from tests.old_logs.write import described
from tests.s3.support import Requests, client_of
from tests.servers.s3 import S3Server

DID = ("did prepare", "did charge")


def expected() -> dict[str, list[Any]]:
    runs: dict[str, list[Any]] = defaultdict(list)
    for line in text_of("expected.jsonl").split("\n")[:-1]:
        runs[(entry := json.loads(line))["run_id"]].append(entry)
    return runs


EXPECTED = expected()


async def test_every_entry_reads_as_it_was_written(untouched: Old) -> None:
    """`runs` names every run that was not cleared, and `list` and `get` return its entries, each field as it was."""
    store = untouched.store
    assert {run_id async for run_id in store.runs()} - {"long"} == EXPECTED.keys()
    read = {run_id: [json.loads(json.dumps(described(record))) for record in await store.list(run_id)] for run_id in EXPECTED}
    assert read == EXPECTED
    for run_id, entries in EXPECTED.items():
        for entry in {entry["step_id"]: entry for entry in entries}.values():
            found = await store.get(run_id, entry["step_id"])
            assert found is not None
            assert json.loads(json.dumps(described(found))) == entry


@pytest.mark.parametrize("untouched_url", ["s3"], indirect=True)
async def test_a_long_run_is_read_from_its_old_snapshot(untouched: Old, untouched_url: str, ministack_server: S3Server) -> None:
    """S3: a snapshot that an earlier edition wrote saves the requests for the entries in it."""
    from durable_s3 import S3Store

    bucket = untouched_url.removeprefix("s3://").partition("/")[0]
    client = client_of(ministack_server.endpoint)
    requests = Requests(client)
    async with S3Store(client, bucket, "logs") as store:
        await store.get("success", "charge")
        requests.clear()
        entries = await store.list("long")
    assert [(record.step_id, record.status) for record in entries] == [(f"n-{n}", "success") for n in range(LENGTH)]
    assert requests.taken()["get"] == 1
    client.close()
    assert await untouched.resume("long") == [None] * LENGTH
    assert untouched.world.done == []


@pytest.mark.parametrize(
    ("run_id", "value"),
    [
        ("success", DID),
        ("second-attempt", "did charge"),
        ("resolved", ("did prepare", "paid by hand")),
        ("retried", DID),
        ("once-finished", "did charge"),
        ("once-recovered", "did charge"),
        ("once-started-again", "did charge"),
        ("sleep-over", "did charge"),
        ("approval-approved", (True, "alice", "checked", "did charge")),
        ("approval-rejected", (False, "bob", "duplicate", "did charge")),
        ("approval-two-votes", (True, "bob", "did charge")),
        ("event-early", (Packed(1.5, "bob"), "did charge")),
        ("event-received", (Packed(2.5), "did charge")),
        ("begun-anew", DID),
        ("kunde/ä {7} ~ %41", DID),
        ("flow-succeeded", RECEIPT),
        ("arguments", None),
        ("values", {name: value for name, (value, _) in VALUES.items()}),
    ],
)
async def test_what_is_recorded_runs_no_more(old: Old, run_id: str, value: object) -> None:
    """A run whose steps all have an outcome returns their values, of each type, and runs none of them."""
    before = await old.store.list(run_id)
    assert await old.resume(run_id) == value
    assert old.world.done == []
    assert [record.id for record in await old.store.list(run_id)] == [record.id for record in before]


async def test_a_recorded_failure_is_raised_until_it_is_retried(old: Old) -> None:
    """A failure is raised again, with its recorded error and without running anything; reopened, the step runs."""
    with pytest.raises(StepFailed, match="the bank is closed") as failed:
        await old.resume("failure")
    assert failed.value.error.matches(ConnectionError)
    assert failed.value.error.matches(OSError)
    assert old.world.done == []
    await control.retry(old.store, "failure", "charge", clock=old.clock)
    assert await old.resume("failure") == DID
    assert old.world.done == ["charge"]


@pytest.mark.parametrize(("run_id", "value"), [("reopened", DID), ("once-reopened", "did charge")])
async def test_a_reopened_step_runs(old: Old, run_id: str, value: object) -> None:
    """A step that was reopened after a failure or an interruption runs, once."""
    assert await old.resume(run_id) == value
    assert await old.resume(run_id) == value
    assert old.world.done == ["charge"]


async def test_an_interrupted_step_stays_interrupted(old: Old) -> None:
    """An intent without an outcome is `StepInterrupted` and runs nothing; an outcome set by hand ends that."""
    with pytest.raises(StepInterrupted):
        await old.resume("once-interrupted")
    assert old.world.done == []
    await control.resolve(old.store, "once-interrupted", "charge", "seen", reason="in the books", clock=old.clock)
    assert await old.resume("once-interrupted") == "seen"


async def test_a_sleep_lasts_until_the_time_that_was_recorded(old: Old) -> None:
    """A sleep that began in the old log ends when it said, not a day from now."""
    with pytest.raises(RunSuspended) as suspended:
        await old.resume("sleep-waiting")
    until = suspended.value.until
    assert until is not None
    assert until.date() == datetime(2026, 1, 2, tzinfo=UTC).date()
    old.clock.advance(until - old.clock.now())
    assert await old.resume("sleep-waiting") == "did charge"
    assert old.world.done == ["charge"]


async def test_an_approval_that_waits_can_be_decided(old: Old) -> None:
    """What was shown is shown, only its approvers may decide, and the run goes on by their decision."""
    with pytest.raises(RunSuspended) as suspended:
        await old.resume("approval-waiting")
    assert suspended.value.waiting_for == ("approve",)
    (asked,) = [record async for record in control.pending(old.store, "approval-waiting", clock=old.clock)]
    assert asked.note["show"] == {"amount": 90, "for": "Zoë"}
    await control.approve(old.store, "approval-waiting", "approve", by="alice", reason="fine", clock=old.clock)
    assert await old.resume("approval-waiting") == (True, "alice", "fine", "did charge")


async def test_a_vote_counts_on(old: Old) -> None:
    """Of an approval by two people that has one vote, the same person adds none, and a second one decides."""
    await control.approve(old.store, "approval-one-vote", "approve", by="alice", clock=old.clock)
    with pytest.raises(RunSuspended):
        await old.resume("approval-one-vote")
    await control.approve(old.store, "approval-one-vote", "approve", by="bob", clock=old.clock)
    assert await old.resume("approval-one-vote") == (True, "bob", "did charge")


async def test_a_deadline_that_passed_stays_passed(old: Old) -> None:
    """A wait whose deadline passed fails on every run, and takes no decision any more."""
    with pytest.raises(StepFailed) as failed:
        await old.resume("approval-too-late")
    assert failed.value.error.matches(TimeoutError)
    with pytest.raises(DeadlinePassed):
        await control.approve(old.store, "approval-too-late", "approve", by="alice", clock=old.clock)
    assert old.world.done == []


async def test_a_decision_is_not_changed(untouched: Old) -> None:
    """A decision in an old log counts: the same again changes nothing, and another one is refused."""
    await control.approve(untouched.store, "approval-approved", "approve", by="alice", reason="checked", clock=untouched.clock)
    with pytest.raises(AlreadyDecided, match="alice"):
        await control.reject(untouched.store, "approval-approved", "approve", by="bob", clock=untouched.clock)
    with pytest.raises(AlreadyDecided):
        await control.send(untouched.store, "event-received", "packed", {"weight": 7}, clock=untouched.clock)


async def test_an_event_that_is_waited_for_can_be_sent(old: Old) -> None:
    """A run that waits for an event goes on with what is sent."""
    with pytest.raises(RunSuspended):
        await old.resume("event-waiting")
    await control.send(old.store, "event-waiting", "packed", {"weight": 3.5}, clock=old.clock)
    assert await old.resume("event-waiting") == (Packed(3.5), "did charge")


async def test_a_flow_that_was_interrupted_goes_on(old: Old) -> None:
    """A `$flow` without an end goes on with the first step that has no outcome."""
    assert await old.resume("flow-interrupted") == RECEIPT
    assert old.world.done == ["charge", "ship"]
    assert await old.resume("flow-interrupted") == RECEIPT
    assert old.world.done == ["charge", "ship"]


async def test_a_flow_that_failed_by_a_step_can_be_retried(old: Old) -> None:
    """The failure is raised again, `status` says it and has the input; once the step is reopened, the run goes on."""
    with pytest.raises(StepFailed, match="the bank is closed"):
        await old.resume("flow-failed")
    assert old.world.done == []
    status = await control.status(old.store, "flow-failed")
    assert (status.status, status.flow) == ("failed", "order")
    assert status.input == {**INPUT, "amount": "90.00"}
    assert status.error is not None
    assert status.error.matches(StepFailed)
    await control.retry(old.store, "flow-failed", "charge", clock=old.clock)
    assert await old.resume("flow-failed") == RECEIPT
    assert old.world.done == ["charge", "ship"]


async def test_a_reopened_flow_goes_on(old: Old) -> None:
    """A `$flow` that was reopened with its step goes on with that step."""
    assert await old.resume("flow-reopened") == RECEIPT
    assert old.world.done == ["charge", "ship"]


async def test_a_flow_that_failed_by_its_own_code_can_be_retried(old: Old) -> None:
    """A typo was recorded as the run's failure: it is read as that, and the run goes on once `$flow` itself is reopened."""
    with pytest.raises(StepFailed, match="totl"):
        await old.resume("flow-typo")
    await control.retry(old.store, "flow-typo", "$flow", clock=old.clock)
    assert await old.resume("flow-typo") == RECEIPT
    assert old.world.done == ["ship"]


async def test_a_flow_that_waits_goes_on(old: Old) -> None:
    """A flow that waits for a person says so, and goes on with the decision."""
    with pytest.raises(RunSuspended) as suspended:
        await old.resume("flow-waiting")
    assert suspended.value.waiting_for == ("approve",)
    assert (await control.status(old.store, "flow-waiting")).waiting_for == ("approve",)
    await control.approve(old.store, "flow-waiting", "approve", by="alice", clock=old.clock)
    assert await old.resume("flow-waiting") == RECEIPT
    assert old.world.done == ["charge", "ship"]


@pytest.mark.parametrize("run_id", ["cancelled", "flow-cancelled"])
async def test_a_cancelled_run_stays_cancelled(old: Old, run_id: str) -> None:
    """`$cancel` beside whatever else there is stops the run before its next step or wait; nothing of it is pending."""
    with pytest.raises((RunCancelled, StepFailed)) as stopped:
        await old.resume(run_id)
    if isinstance(stopped.value, StepFailed):
        assert stopped.value.error.matches(RunCancelled)
    assert old.world.done == []
    assert (await control.status(old.store, run_id)).status == "cancelled"
    assert [record async for record in control.pending(old.store, run_id, clock=old.clock)] == []


async def test_what_waits_for_a_person_is_listed(untouched: Old) -> None:
    """`pending` names the approvals of old runs that wait, and neither those decided nor those of a cancelled run."""
    found = {record.run_id async for record in control.pending(untouched.store, clock=untouched.clock)}
    assert found == {"approval-waiting", "approval-one-vote", "flow-waiting"}
    untouched.clock.advance(timedelta(days=1))
    later = {record.run_id async for record in control.pending(untouched.store, clock=untouched.clock)}
    assert later == {"approval-one-vote", "flow-waiting"}


async def test_every_run_has_a_status(untouched: Old) -> None:
    """`runs` yields each old run, with its flow, and how those that have ended came to their end."""
    found = {run.run_id: run async for run in control.runs(untouched.store)}
    found.pop("long", None)
    assert found.keys() == EXPECTED.keys()
    assert {run_id for run_id, run in found.items() if run.flow} == {run_id for run_id in EXPECTED if run_id.startswith("flow-")}
    failed = {run_id for run_id, run in found.items() if run.status == "failed"}
    assert failed == {"failure", "approval-too-late", "flow-failed", "flow-typo"}


async def test_a_run_can_be_forked_and_cleared(own: Old) -> None:
    """An old run can be forked, and cleared, which leaves the others."""
    store = own.store
    assert await control.fork(store, "success", "forked", before="charge") == 1
    assert [record.step_id for record in await store.list("forked")] == ["prepare"]
    await store.clear("success")
    assert not await store.list("success")
    assert await store.get("success", "charge") is None
    assert await own.resume("success") == DID
    assert own.world.done == ["prepare", "charge"]
    assert await own.resume("kunde/ä {7} ~ %41") == DID
    assert own.world.done == ["prepare", "charge"]
