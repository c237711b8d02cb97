"""Asking for a cancellation: one entry that later ones carry on, never beside a flow that doesn't know of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from durable_core import MemoryStore, Refused, RunCancelled, Runner, RunSuspended, StepFailed, StepRecord, control, flow
from durable_core.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@flow(wait_limit=0)
async def ships(runner: Runner, order: int) -> str:
    return await runner.event("packed", returns=str)


async def suspended(store: MemoryStore, run_id: str = "run") -> None:
    with pytest.raises(RunSuspended):
        await ships.run(store, run_id=run_id, order=7)


async def test_the_request_is_the_next_entry_of_the_flow(store: MemoryStore) -> None:
    """It says who, why and when, and keeps what lasts; again it changes nothing, whoever asks."""
    clock = FakeClock()
    await suspended(store)
    record = await control.cancel(store, "run", reason="sold out", by="alice", clock=clock)
    assert (record.step_id, record.revision, record.status, record.until) == ("$flow", 2, "reopened", None)
    asked = {"reason": "sold out", "by": "alice", "at": clock.now().isoformat()}
    assert record.notes["cancelled"] == asked
    assert record.notes["input"] == {"order": 7}
    assert "waiting_for" not in record.notes
    clock.advance(60)
    assert await control.cancel(store, "run", reason="another", by="bob", clock=clock) == record
    assert (await control.status(store, "run")).status == "cancelling"


async def test_a_run_that_was_only_asked_for_is_ended_at_once(store: MemoryStore) -> None:
    """Nothing of it ever ran, so nobody has to be told."""
    await ships.start(store, "run", at=timedelta(days=1), order=7)
    record = await control.cancel(store, "run", reason="sold out", by="alice")
    assert (record.status, record.revision, record.until) == ("failure", 1, None)
    assert record.error is not None
    assert record.error.matches(RunCancelled)
    assert "by alice: sold out" in record.error.message
    status = await control.status(store, "run")
    assert (status.status, status.why, status.input) == ("cancelled", "sold out", {"order": 7})
    with pytest.raises(StepFailed, match="sold out"):
        await ships.run(store, run_id="run", order=7)
    with pytest.raises(Refused, match="was cancelled at"):
        await control.cancel(store, "run")


@pytest.mark.parametrize("status", ["success", "failure"])
async def test_a_run_that_has_ended_is_not_cancelled(store: MemoryStore, status: Any) -> None:
    """However it ended; nothing is appended."""
    error = {"error": (await _error())} if status == "failure" else {}
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", status=status, **error))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="run 'run' has already ended: it (succeeded|failed) at"):
        await control.cancel(store, "run")
    assert len(await store.list("run")) == 1


async def _error() -> Any:
    store = MemoryStore()
    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run").step("a", lambda: 1 / 0)
    return failed.value.error


async def test_a_flow_that_begins_while_its_run_is_cancelled_is_told(store: MemoryStore) -> None:
    """Whoever asks looks for the flow after the request, so that neither misses the other."""

    class Begins(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            if record.step_id == "$cancel":
                await super().append(StepRecord(run_id="run", step_id="$flow", kind="flow", status="started", name="ships"))
            return await super().append(record)

    store = Begins()
    await control.send(store, "run", "packed", "early")
    record = await control.cancel(store, "run", reason="sold out")
    assert (record.step_id, record.status, record.revision) == ("$flow", "reopened", 1)
    assert record.notes["cancelled"]["reason"] == "sold out"


async def test_a_flow_that_ended_while_its_run_was_cancelled_stays_ended(store: MemoryStore) -> None:
    """It was over before anybody could tell it."""

    class Ends(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            if record.step_id == "$cancel":
                await super().append(StepRecord(run_id="run", step_id="$flow", kind="flow", name="ships"))
            return await super().append(record)

    store = Ends()
    await control.send(store, "run", "packed", "early")
    assert (await control.cancel(store, "run")).status == "success"
    assert (await control.status(store, "run")).status == "succeeded"


async def test_a_rival_that_is_first_is_cancelled_next(store: MemoryStore) -> None:
    """The request goes to the next revision of whoever won: a run that starts just now is told, one that ends is not."""

    class Rival(MemoryStore):
        status = "started"

        async def append(self, record: StepRecord) -> StepRecord:
            if "cancelled" in record.notes and record.revision == 1:
                await super().append(
                    StepRecord(run_id="run", step_id="$flow", revision=1, kind="flow", status=self.status)  # type: ignore[arg-type]
                )
            return await super().append(record)

    store = Rival()
    await ships.start(store, "run", order=7)
    record = await control.cancel(store, "run")
    assert (record.revision, record.status) == (2, "reopened")
    store = Rival()
    store.status = "success"
    await ships.start(store, "run", order=7)
    with pytest.raises(Refused, match="succeeded"):
        await control.cancel(store, "run")


async def test_a_run_without_a_flow_is_cancelled_from_the_request_on(store: MemoryStore) -> None:
    """Its runner is told, and so is every later one."""
    runner = Runner(store, "run")
    await runner.step("a", lambda: 1)
    record = await control.cancel(store, "run", reason="enough", by="alice")
    assert (record.step_id, record.note) == ("$cancel", {"reason": "enough", "by": "alice"})
    assert await control.cancel(store, "run", reason="another") == record
    with pytest.raises(RunCancelled, match="by alice: enough"):
        await runner.step("b", lambda: 1)


async def test_a_request_of_an_older_log_is_made_anew(store: MemoryStore) -> None:
    """`$cancel` beside a flow that does not say so is followed by an entry of the flow."""
    await suspended(store)
    await store.append(StepRecord(run_id="run", step_id="$cancel", kind="flow"))
    record = await control.cancel(store, "run", reason="enough")
    assert (record.step_id, record.status) == ("$flow", "reopened")
