"""The index of the runs that have not ended: marks in `open/`, written before the log and removed after the end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from durable_core import StepRecord, StoreError, control
from durable_core.testing._contract.flows import BEGAN, flow_entry
from durable_s3 import S3Store, _flows

pytestmark = pytest.mark.asyncio


async def marks(store: S3Store, run_id: str = "run") -> list[int]:
    """Return the revisions that are marked, those of a run that is there or not."""
    keys = await store._flows.of_run(run_id)
    return sorted(int(key.rpartition("/")[2].partition(".")[0]) for key in keys)


async def test_a_run_is_marked_until_its_end(s3_url: str) -> None:
    """Each entry that is no end has a mark; after the end there is none, and `clear` leaves none."""
    async with S3Store.from_url(s3_url) as store:
        await store.append(StepRecord(run_id="run", step_id="step"))
        assert await marks(store) == []
        await store.append(flow_entry())
        await store.append(flow_entry(state="waiting", revision=1))
        assert await marks(store) == [0, 1]
        await store.append(flow_entry(state="succeeded", revision=2))
        assert await marks(store) == []
        await store.append(flow_entry("other"))
        await store.clear("other")
        assert await marks(store, "other") == []


async def test_who_ends_a_run_late_leaves_the_mark_of_its_reopening(s3_url: str) -> None:
    """A process that recorded the end and stood still removes no mark of what was appended behind it."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        await store.append(flow_entry())
        await store._append(flow_entry(state="failed", revision=1))
        reopened = await other.append(flow_entry(state="crashed", revision=2))
        await store._flows.end("run", 1)
        assert [*await other.flows()] == [reopened]


async def test_a_mark_under_way_is_left(s3_url: str) -> None:
    """Who reads the index between a mark and its entry lists nothing and removes nothing; the run is found once it is there."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        flow = flow_entry()
        await store._flows.add(flow)
        assert [*await other.flows()] == []
        await store._append(flow)  # and its process dies
        assert [*await other.flows()] == [flow]


async def test_readers_remove_marks_that_stand_for_nothing(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a run that has ended at once, and that of a run which isn't there when no append can be under way any more."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        await store.append(flow_entry())
        await store._append(flow_entry(state="failed", revision=1))
        await store._flows.add(flow_entry("nowhere"))
        assert [*await other.flows()] == []
        assert (await marks(store), await marks(store, "nowhere")) == ([], [0])
        monkeypatch.setattr(_flows, "_IN_FLIGHT", -10)
        assert [*await other.flows()] == []
        assert await marks(store, "nowhere") == []


async def test_a_run_begun_anew_while_it_is_cleared_is_found(s3_url: str) -> None:
    """`clear` removes the marks that it saw, and marks what it finds then."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        await store.append(flow_entry())
        anew = flow_entry(started_at=BEGAN + timedelta(hours=1))
        await store._flows.add(anew)
        seen = await other._flows.of_run("run")
        await other._bucket.delete([other._keys.entry("run", anew.step_id, 0)])
        await store._append(anew)
        await other._flows.remove("run", seen)
        assert [*await other.flows()] == [anew]


async def test_one_damaged_run_hides_no_other(s3_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is passed over and told in the log; alone it is an error."""
    async with S3Store.from_url(s3_url) as store:
        await store.append(flow_entry("damaged"))
        await store._bucket.put(store._keys.entry("damaged", "$flow", 0), b"{")
        with pytest.raises(StoreError, match="does not contain a step record"):
            await store.flows()
        flow = await store.append(flow_entry("sound"))
        assert [*await store.flows()] == [flow]
        assert "a run is passed over" in caplog.text


async def test_runs_are_found_in_every_state(s3_url: str) -> None:
    """Where the index does not hold a state that is asked for, the logs are read."""
    async with S3Store.from_url(s3_url) as store:
        for run_id, state in (("a", "waiting"), ("b", "succeeded"), ("c", "failed"), ("d", "parked")):
            result = b"1" if state == "succeeded" else None
            await store.append(flow_entry(run_id, state, result=result))  # type: ignore[arg-type]  # mypy widens the names
        await store.append(StepRecord(run_id="e", step_id="step"))
        for status, expected in (
            (None, "abcde"),
            ("waiting", "a"),
            ("succeeded", "b"),
            (["failed", "parked"], "cd"),
            ("open", "e"),
        ):
            assert sorted([run.run_id async for run in control.runs(store, status=status)]) == [*expected], status  # type: ignore[arg-type]
        assert [*await store.flows(states=["succeeded"])] == []
