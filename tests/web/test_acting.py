"""Acting from the page: each verb does what `durable_core.control` does, and the log says who did it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepInterrupted, Store, control
from durable_web import Page, app
from tests.web.conftest import Browse, Browser, signed_in
from tests.web.flows import ask, broken, fail, parcel, payout


async def decide(browser: Browser, store: Store, answer: str, run_id: str = "payout-1", **fields: Any) -> Any:
    """Answer a question as its form in the inbox does."""
    record = await store.get(run_id, "approve")
    assert record is not None
    return await browser.post("act/decide", run=run_id, step="approve", mark=browser.mark(record), answer=answer, **fields)


async def note(store: Store, run_id: str, step_id: str) -> Any:
    record = await store.get(run_id, step_id)
    assert record is not None
    return record.notes


async def test_two_people_decide(store: Store, browse: Browse) -> None:
    """One alone doesn't, also twice, and nobody changes the value alone; the run goes on once both have approved the same."""
    await ask(store, quorum=2)
    page = app(store, user=signed_in)
    alice, bob = browse(page, "alice"), browse(page, "bob")
    for _ in range(2):
        assert (await decide(alice, store, "approve", reason="fits")).headers["location"].endswith("/?said=approved")
    assert "1 of 2" in (await bob.get()).text
    await decide(bob, store, "approve", value='{"amount": 45}')
    assert "Not everyone approved the same value" in (await alice.get()).text
    await decide(alice, store, "approve", reason="fits", value='{"amount": 45}')
    votes = (await note(store, "payout-1", "approve"))["votes"]
    assert [(vote["by"], vote["reason"], vote.get("value")) for vote in votes] == [
        ("bob", None, {"amount": 45}),
        ("alice", "fits", {"amount": 45}),
    ]
    assert await payout.run(store, run_id="payout-1") == "paid by alice"
    late = await decide(alice, store, "reject")
    assert (late.status_code, "was decided" in late.text) == (409, True)


@pytest.mark.parametrize(
    ("typed", "value"),
    [('{ "amount": 90 }', None), ("", None), ('{"amount": 90.5}', {"amount": 90.5}), ("90", 90)],
    ids=["as it was", "nothing", "changed", "a number"],
)
async def test_a_value_counts_where_it_was_changed(memory: MemoryStore, browse: Browse, typed: str, value: Any) -> None:
    """The form holds the value that is asked for: sent back as it was, the flow finds None, as where nobody was asked for one."""
    await ask(memory)
    await decide(browse(app(memory, user=signed_in), "alice"), memory, "approve", value=typed)
    record = await memory.get("payout-1", "approve")
    assert record is not None
    assert record.value().get("value") == value


async def test_what_was_shown_has_changed(memory: MemoryStore, browse: Browse) -> None:
    """An answer to a page that showed another amount is none."""
    await ask(memory)
    alice = browse(app(memory, user=signed_in), "alice")
    record = await memory.get("payout-1", "approve")
    assert record is not None
    mark = alice.mark(record)
    await memory.clear("payout-1")
    await ask(memory, amount=9000)
    answer = await alice.post("act/decide", run="payout-1", step="approve", mark=mark, answer="approve")
    assert (answer.status_code, "has changed" in answer.text) == (409, True)
    assert not (await note(memory, "payout-1", "approve")).get("votes")


async def test_who_is_no_approver(memory: MemoryStore, browse: Browse) -> None:
    """The core refuses, and the page says why."""
    await ask(memory, approvers=["bob"])
    answer = await decide(browse(app(memory, user=signed_in), "alice"), memory, "approve")
    assert (answer.status_code, "may not decide" in answer.text) == (409, True)


async def test_a_failed_run_goes_on(store: Store, browse: Browse) -> None:
    """Retry and resolve, of the run or of its step."""
    alice = browse(app(store, user=signed_in), "alice")
    await fail(store)
    answer = await alice.post("act/retry", run="broken-1", reason="the bank is open")
    assert answer.headers["location"].endswith("/run?run=broken-1&said=retried")
    assert await note(store, "broken-1", "$flow") | {"reason": "the bank is open", "by": "alice"} == await note(
        store, "broken-1", "$flow"
    )
    await fail(store)
    await alice.post("act/retry", run="broken-1", step="pay-back")
    assert (await note(store, "broken-1", "pay-back"))["by"] == "alice"
    await fail(store)
    await alice.post("act/resolve", run="broken-1", step="pay-back", value="null", reason="paid in cash")
    assert (await note(store, "broken-1", "pay-back"))["reason"] == "paid in cash"
    await broken.run(store, run_id="broken-1")
    assert (await control.status(store, "broken-1")).status == "succeeded"


async def test_the_other_verbs(store: Store, browse: Browse) -> None:
    """Cancel, fork, send and clean."""
    alice = browse(app(store, user=signed_in), "alice")
    await ask(store)
    await alice.post("act/fork", run="payout-1", step="approve", new_run="payout-2")
    assert (await control.status(store, "payout-2")).origin == ("payout-1", "approve")
    await alice.post("act/cancel", run="payout-2", reason="twice")
    assert (await note(store, "payout-2", "$flow"))["cancelled"] | {"reason": "twice", "by": "alice"} == (
        await note(store, "payout-2", "$flow")
    )["cancelled"]
    with pytest.raises(RunSuspended):
        await parcel.run(store, run_id="parcel-1")
    await alice.post("act/send", run="parcel-1", step="packed", value='{"box": 7}')
    assert (await note(store, "parcel-1", "packed")) == {"by": "alice"}
    assert await parcel.run(store, run_id="parcel-1") == {"box": 7}
    assert (await alice.post("act/clean", run="parcel-1")).status_code == 303
    assert not await store.list("parcel-1")


async def test_many_at_once_with_a_line_each(store: Store, browse: Browse) -> None:
    """What can be done is done, and what is refused is told, run by run."""
    for number in range(20):
        await fail(store, f"broken-{number:02}")
    await ask(store)
    alice = browse(app(store, user=signed_in), "alice")
    chosen = [*(f"broken-{number:02}" for number in range(20)), "payout-1", "nobody", "broken-00"]
    answer = await alice.post("act/bulk", verb="retry", run=chosen, reason="the bank is open")
    assert "20 of 22 done" in answer.text
    assert answer.text.count("will be tried again") == 20
    assert "there is no run" in answer.text
    for number in range(20):
        assert (await note(store, f"broken-{number:02}", "$flow"))["by"] == "alice"
    await alice.post("act/bulk", verb="cancel", run=["payout-1"])
    assert (await control.status(store, "payout-1")).status == "cancelling"
    await fail(store, "broken-00")
    answer = await alice.post("act/bulk", verb="clean", run=["broken-00", "payout-1"])
    assert "1 of 2 done" in answer.text
    assert not await store.list("broken-00")
    assert await store.list("payout-1")


@pytest.mark.parametrize(
    ("action", "fields", "status", "what"),
    [
        ("act/bulk", {"verb": "retry"}, 400, "choose some runs"),
        ("act/bulk", {"verb": "explode", "run": "a"}, 400, "choose what to do"),
        ("act/retry", {}, 400, "run"),
        ("act/retry", {"run": "a\nb"}, 400, "control character"),
        ("act/retry", {"run": "x" * 513}, 400, "512 bytes"),
        ("act/retry", {"run": "nobody"}, 404, "no run"),
        ("act/cancel", {"run": "broken-1"}, 409, "has already ended"),
        ("act/resolve", {"run": "broken-1", "step": "pay-back", "value": "1"}, 400, "give a reason"),
        ("act/resolve", {"run": "broken-1", "step": "pay-back", "value": "{", "reason": "r"}, 400, "is not JSON"),
        ("act/send", {"run": "r", "step": "s", "value": "yes"}, 400, "in quotes"),
        ("act/send", {"run": "r", "step": "s", "value": "NaN"}, 400, "is not JSON"),
        ("act/send", {"run": "r", "step": "s", "value": "[" * 5000}, 400, "is not JSON"),
        ("act/send", {"run": "r", "step": "s", "value": "1" * 5000}, 400, "value"),
        ("act/send", {"run": "r", "step": "s", "value": '"\\ud800"'}, 400, "value"),
        ("act/send", {"run": "$r", "step": "s", "value": "1"}, 400, "library"),
        ("act/send", {"run": "r", "step": "$s", "value": "1"}, 400, "library"),
        ("act/fork", {"run": "broken-1", "step": "pay-back", "new_run": "$x"}, 400, "library"),
        ("act/fork", {"run": "broken-1", "step": "none", "new_run": "x"}, 404, "no step"),
        ("act/decide", {"run": "broken-1", "step": "pay-back", "answer": "approve", "mark": "x"}, 404, "no approval"),
        ("act/clean", {"run": "nobody"}, 404, "no run"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
async def test_what_can_not_be_done_is_told(
    page: Page, memory: MemoryStore, browse: Browse, action: str, fields: dict[str, str], status: int, what: str
) -> None:
    """Bad input gets one clear error, and nothing is done."""
    await fail(memory)
    before = [record async for run in memory.runs() for record in await memory.list(run)]
    answer = await browse(page, "alice").post(action, **fields)
    assert (answer.status_code, what in answer.text) == (status, True), answer.text
    assert [record async for run in memory.runs() for record in await memory.list(run)] == before


async def test_a_run_that_somebody_holds(store: Store, browse: Browse) -> None:
    """What needs the run's lock is refused while another holds it, and the page says who."""
    runner = Runner(store, "run")
    await store.append(_started("run"))
    with pytest.raises(StepInterrupted):
        await runner.step("charge", lambda: 1, at_most_once=True)
    async with Runner(store, "run"):
        answer = await browse(app(store, user=signed_in), "alice").post("act/retry", run="run", step="charge")
    assert (answer.status_code, "is held by" in answer.text) == (409, True)


def _started(run_id: str) -> Any:
    from durable_core import StepRecord

    return StepRecord(run_id=run_id, step_id="charge", status="started")
