"""Finding runs: newest begun first, by status, flow and time, in pages, with an index and without one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from durable_core import CorruptLog, FlowState, MemoryStore, Refused, Runner, StepError, StepRecord, StoreError, control
from durable_core.control import RunStatus

BEGAN = datetime(2026, 3, 29, 12, tzinfo=UTC)
CANCELLED = StepError("durable_core.errors.RunCancelled")
ENTRIES: dict[str, dict[str, Any]] = {
    "waiting": {"status": "waiting"},
    "interrupted": {"status": "started"},
    "crashed": {"status": "reopened", "error": StepError("NameError")},
    "parked": {"status": "waiting", "note": {"parked": {"step": None, "why": "drift", "mend": "…"}, "waiting_for": []}},
    "cancelling": {"status": "reopened", "note": {"cancelled": {}}},
    "succeeded": {"status": "success"},
    "failed": {"status": "failure", "error": StepError("OSError")},
    "cancelled": {"status": "failure", "error": CANCELLED},
}


class WithoutIndex(MemoryStore):
    """Reads every log."""

    flows = None  # type: ignore[assignment]  # an ability that isn't there


STORES = {"index": MemoryStore, "logs": WithoutIndex}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return STORES[request.param]()


async def begin(store: MemoryStore, run_id: str, status: str, seconds: float = 0, name: str = "pay") -> None:
    fields = {"started_at": BEGAN + timedelta(seconds=seconds), "ended_at": BEGAN + timedelta(seconds=seconds)}
    if status in ("open", "failed alone", "cancelled alone"):
        step = {"step_id": "step", "status": "failure" if status == "failed alone" else "success"}
        error = StepError("OSError") if status == "failed alone" else None
        await store.append(StepRecord(run_id=run_id, error=error, **step, **fields))  # type: ignore[arg-type]  # ids and times
        if status == "cancelled alone":
            await store.append(StepRecord(run_id=run_id, step_id="$cancel", kind="flow", **fields))  # type: ignore[arg-type]
    else:
        await store.append(StepRecord(run_id=run_id, step_id="$flow", kind="flow", name=name, **fields, **ENTRIES[status]))


async def found(runs: AsyncIterator[RunStatus]) -> list[str]:
    return [run.run_id async for run in runs]


async def test_the_last_that_began_comes_first(store: MemoryStore) -> None:
    """With a flow and without one, in one order; of those that began together the highest id."""
    for number, status in enumerate(["open", "waiting", "succeeded", "open", "failed alone", "crashed"]):
        await begin(store, f"run-{number}", status, number)
    await begin(store, "run-5b", "open", 5)
    await begin(store, "run-5c", "waiting", 5)
    assert await found(control.runs(store)) == ["run-5c", "run-5b", "run-5", "run-4", "run-3", "run-2", "run-1", "run-0"]
    assert await found(control.runs(store, limit=3)) == ["run-5c", "run-5b", "run-5"]
    assert await found(control.runs(store, since=BEGAN + timedelta(seconds=4))) == ["run-5c", "run-5b", "run-5", "run-4"]


@pytest.mark.parametrize("status", [*ENTRIES, "open", "failed alone", "cancelled alone"])
async def test_runs_are_found_by_status(store: MemoryStore, status: str) -> None:
    """Those that stand so and no others, whatever else there is; several statuses find those of each."""
    statuses = [*ENTRIES, "open", "failed alone", "cancelled alone"]
    for number, each in enumerate(statuses):
        await begin(store, each, each, number)
    asked: Any = status.removesuffix(" alone")
    alike = [each for each in reversed(statuses) if each.removesuffix(" alone") == asked]
    assert await found(control.runs(store, status=asked)) == alike
    both = [each for each in reversed(statuses) if each.removesuffix(" alone") in (asked, "parked")]
    assert await found(control.runs(store, status={asked, "parked"})) == both
    assert await found(control.runs(store, status=())) == []


async def test_runs_that_are_held_are_running(store: MemoryStore) -> None:
    """Started runs are told apart by who holds them, and by what they wait for."""
    for number, run_id in enumerate(("held", "left", "waits")):
        await begin(store, run_id, "interrupted", number)
    await store.append(StepRecord(run_id="waits", step_id="go", status="waiting", kind="approval"))
    async with store.lock("held"), store.lock("waits"):
        assert await found(control.runs(store, status="running")) == ["held"]
        assert await found(control.runs(store, status="interrupted")) == ["left"]
        assert await found(control.runs(store, status="waiting")) == ["waits"]


async def test_runs_are_found_by_flow_and_prefix(store: MemoryStore) -> None:
    """Names and prefixes are taken as they are; a run without a flow has no name."""
    for number, (run_id, name) in enumerate([("a_1", "pay"), ("ab1", "pay"), ("a_2", "ship"), ("50%", "pay"), ("500", "pay")]):
        await begin(store, run_id, "waiting", number, name)
    await begin(store, "a_3", "open", 9)
    assert await found(control.runs(store, "a_")) == ["a_3", "a_2", "a_1"]
    assert await found(control.runs(store, "50%")) == ["50%"]
    assert await found(control.runs(store, flow="pay")) == ["500", "50%", "ab1", "a_1"]
    assert await found(control.runs(store, "a_", flow="ship", status="waiting")) == ["a_2"]
    assert await found(control.runs(store, flow="nobody")) == []


@pytest.mark.parametrize("status", [None, "waiting", ("waiting", "open", "interrupted")])
async def test_pages_follow_each_other(store: MemoryStore, status: Any) -> None:
    """The last run of a page asks for the next: each comes once, though runs begin and end meanwhile."""
    chance = random.Random(5)
    for number in range(130):
        await begin(store, f"run-{number}", chance.choice(["waiting", "open", "interrupted", "failed"]), chance.randrange(30))
    expected = await found(control.runs(store, status=status))
    read: list[str] = []
    before: tuple[datetime, str] | None = None
    while page := [run async for run in control.runs(store, status=status, limit=7, before=before)]:
        read += [run.run_id for run in page]
        before = (page[-1].started_at, page[-1].run_id)
        await begin(store, f"new-{len(read)}", "waiting", 60)
        await store.clear(page[-1].run_id)
    assert read == expected
    assert len(set(read)) == len(read)


async def test_the_librarys_own_runs_are_not_shown(store: MemoryStore) -> None:
    """What begins with `$` belongs to nobody else."""
    for run_id in ("$cron/nightly", "$sweep"):
        await begin(store, run_id, "waiting")
        await store.append(StepRecord(run_id=run_id, step_id="go", status="waiting", kind="approval"))
    await begin(store, "$open", "open")
    assert await found(control.runs(store)) == []
    assert [record async for record in control.pending(store)] == []


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"status": "ended"}, "'ended' is not one of open, waiting, running"),
        ({"status": ["failed", "started"]}, "'started' is not one of"),
        ({"limit": 0}, "limit must be"),
        ({"limit": True}, "limit must be"),
        ({"since": datetime(2026, 1, 1)}, "since.*has no time zone"),  # that is what is refused
        ({"before": (datetime(2026, 1, 1), "run")}, "before.*has no time zone"),
    ],
)
async def test_what_cannot_be_asked_for(store: MemoryStore, asked: Any, match: str) -> None:
    """One clear error, before anything is read."""
    with pytest.raises(ValueError, match=match):
        await found(control.runs(store, **asked))


class StaleIndex(MemoryStore):
    """An index that was written before the log: it names what isn't there yet, and how runs stood or will stand."""

    async def flows(self, prefix: str = "", **asked: Any) -> Sequence[StepRecord]:
        asked.pop("states", None)
        before, limit = asked.get("before"), asked.get("limit", 50)
        page = [*await super().flows(prefix, **asked)]
        ghost = StepRecord(run_id="ghost", step_id="$flow", status="started", started_at=BEGAN + timedelta(days=1))
        return ([ghost] if before is None else []) + page[: limit - 1] if page or before is None else page


async def test_what_an_index_says_is_looked_up_in_the_log() -> None:
    """A run that isn't there is left out, and so is one that stands otherwise."""
    store = StaleIndex()
    for number, status in enumerate(("waiting", "succeeded", "waiting", "failed")):
        await begin(store, f"run-{number}", status, number)
    assert await found(control.runs(store, status="waiting")) == ["run-2", "run-0"]
    assert await found(control.runs(store)) == ["run-3", "run-2", "run-1", "run-0"]


async def test_a_page_of_many_runs_reads_no_other_logs() -> None:
    """With an index the logs of a page are read, and not those of all runs."""
    looks: list[str] = []

    class Counts(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            looks.append(run_id)
            return await super().list(run_id)

    store = Counts()
    for number in range(1000):
        await begin(store, f"run-{number:04}", "waiting" if number % 2 else "succeeded", number)
    page = await found(control.runs(store, status="waiting", limit=50))
    assert page == [f"run-{number:04}" for number in range(999, 899, -2)]
    assert looks == page
    looks.clear()
    assert len(await found(control.runs(store, limit=20))) == 20
    assert len(looks) == 20


async def test_a_damaged_run_hides_no_other(store: MemoryStore) -> None:
    """The rest is yielded, and then what is wrong with some is raised, however many are asked for."""
    for number in range(6):
        await begin(store, f"run-{number}", "waiting" if number % 2 else "open", number)
    read = store.list

    async def damaged(run_id: str) -> Sequence[StepRecord]:
        if run_id in ("run-2", "run-3"):
            raise CorruptLog(f"{run_id}: the checksum doesn't match")
        return await read(run_id)

    store.list = damaged  # type: ignore[method-assign]
    for limit, expected in ((None, ["run-5", "run-4", "run-1", "run-0"]), (3, ["run-5", "run-4", "run-1"])):
        seen: list[str] = []
        with pytest.raises(CorruptLog) as told:
            async for run in control.runs(store, limit=limit):
                seen.append(run.run_id)  # noqa: PERF401  # what came before the error counts
        assert seen == expected
        assert "run-" in str(told.value)


async def test_a_store_that_is_away_is_not_taken_for_damage(store: MemoryStore) -> None:
    """Two logs in a row that can't be read are no damage: it is told at once."""
    for number in range(30):
        await begin(store, f"run-{number}", "open", number)
    looks: list[str] = []

    async def away(run_id: str) -> Sequence[StepRecord]:
        looks.append(run_id)
        raise StoreError("no connection")

    store.list = away  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="no connection"):
        await found(control.runs(store))
    assert len(looks) < 30


async def test_pending_reads_only_runs_that_go_on() -> None:
    """With an index it passes over what ended or is to stop, unread; runs without a flow are looked at, too."""
    looks: list[str] = []

    class Counts(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            looks.append(run_id)
            return await super().list(run_id)

    store = Counts()
    for number, status in enumerate([*ENTRIES, "open", "cancelled alone"]):
        await begin(store, status, status, number)
        await store.append(StepRecord(run_id=status, step_id="go", status="waiting", kind="approval"))
    found = [record.run_id async for record in control.pending(store)]
    assert found == ["parked", "crashed", "interrupted", "waiting", "open"]
    assert {*looks} == {*found, "cancelled alone"}


async def test_pending_on_a_store_without_an_index() -> None:
    """It reads every log, and passes over the same runs."""
    store = WithoutIndex()
    for number, status in enumerate([*ENTRIES, "open", "cancelled alone"]):
        await begin(store, status, status, number)
        await store.append(StepRecord(run_id=status, step_id="go", status="waiting", kind="approval"))
    found = {record.run_id async for record in control.pending(store)}
    assert found == {"parked", "crashed", "interrupted", "waiting", "open"}


async def test_an_index_without_a_listing_finds_runs_with_a_flow() -> None:
    """A store that can't name its runs tells those that its index names; one that can do neither says so."""

    class Indexed(MemoryStore):
        runs = None  # type: ignore[assignment]  # an ability that isn't there

    class Plain(Indexed):
        flows = None  # type: ignore[assignment]

    store: Any = Indexed()
    await begin(store, "run", "waiting")
    await begin(store, "open", "open")
    assert await found(control.runs(store)) == ["run"]
    with pytest.raises(Refused, match="can't list its runs"):
        await found(control.runs(Plain()))


async def test_a_run_that_gets_a_flow_meanwhile_comes_once() -> None:
    """Between the look for runs without a flow and the look into the index."""

    class Begins(MemoryStore):
        async def flows(self, prefix: str = "", **asked: Any) -> Sequence[StepRecord]:
            page = await super().flows(prefix, **asked)
            if asked.get("limit", 0) > 100:  # while all names are gathered
                await begin(self, "run", "waiting", 5)
            return page

    store = Begins()
    await Runner(store, "run").step("early", lambda: 1)
    assert await found(control.runs(store)) == ["run"]


def test_states_are_those_of_an_index() -> None:
    """Every status that a flow's entry can say is one that an index is asked for."""
    names: Collection[FlowState] = FlowState.__args__  # type: ignore[attr-defined]  # of a Literal
    assert {*names} == {*ENTRIES} - {"interrupted"} | {"started"}


async def test_runs_without_a_flow_are_left_out(store: MemoryStore) -> None:
    """Whoever asks `only_flows` gets none without a flow, with an index and without one."""
    for number, status in enumerate(("waiting", "open", "failed", "failed alone", "cancelled alone")):
        await begin(store, f"run-{number}", status, number)
    assert await found(control.runs(store, only_flows=True)) == ["run-2", "run-0"]
    assert await found(control.runs(store, status="failed", only_flows=True)) == ["run-2"]
    assert await found(control.runs(store, status="open", only_flows=True)) == []
    if not isinstance(store, WithoutIndex):
        store.runs = None  # type: ignore[assignment,method-assign]  # nobody may list
        assert await found(control.runs(store, only_flows=True)) == ["run-2", "run-0"]


async def test_an_index_is_not_compared_with_all_ids_for_flows_alone() -> None:
    """Naming them all costs more than a page does."""

    class Unnamed(MemoryStore):
        def runs(self, prefix: str = "") -> AsyncIterator[str]:
            raise AssertionError

    store = Unnamed()
    await begin(store, "run", "waiting")
    assert await found(control.runs(store, only_flows=True)) == ["run"]


async def test_approvals_of_runs_without_a_flow_are_left_out_unread(store: MemoryStore) -> None:
    """Whoever asks `only_flows` gets those of runs with a flow, and an index is not compared with all ids for it."""
    for number, status in enumerate(("waiting", "open")):
        await begin(store, status, status, number)
        await store.append(StepRecord(run_id=status, step_id="go", status="waiting", kind="approval"))
    assert {record.run_id async for record in control.pending(store)} == {"waiting", "open"}
    if not isinstance(store, WithoutIndex):

        def runs(prefix: str = "") -> Any:
            raise AssertionError("all ids were listed")

        store.runs = runs  # type: ignore[method-assign]  # nobody may list
    assert [record.run_id async for record in control.pending(store, only_flows=True)] == ["waiting"]


async def test_runs_that_sleep_are_not_read_for_who_may_decide() -> None:
    """What suspended runs wait for is looked at in one request: only those are read whose flows don't say it."""
    looks: list[str] = []

    class Counts(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            looks.append(run_id)
            return await super().list(run_id)

    store = Counts()

    async def suspend(run_id: str, *kinds: Any, note: Any = None) -> None:
        for kind in kinds:
            await store.append(StepRecord(run_id=run_id, step_id=kind, kind=kind, status="waiting"))
        waits = {"waiting_for": [[run_id, kind] for kind in kinds] or [[f"{run_id}/child", "$flow"]], **(note or {})}
        await store.append(StepRecord(run_id=run_id, step_id="$flow", kind="flow", name="f", status="waiting", note=waits))

    await suspend("sleeps", "sleep")
    await suspend("hears", "event", "sleep")
    await suspend("has a child")
    await suspend("asks", "approval")
    await suspend("asks and sleeps", "sleep", "approval")
    await suspend("is parked", "approval", note={"parked": {"step": "x"}, "waiting_for": [["is parked", "x"]]})
    await suspend("knows not", "approval", note={"waiting_for": [["knows not", "gone"]]})
    await suspend("is to stop", "approval")
    await store.append(StepRecord(run_id="is to stop", step_id="$cancel", kind="flow"))  # as older logs have it
    asked = [record.run_id async for record in control.pending(store, only_flows=True)]
    assert {*asked} == {"asks", "asks and sleeps", "is parked", "knows not"}
    assert sorted(looks) == ["is parked", "is to stop", "knows not"]


async def test_what_an_index_says_of_waits_is_looked_up_in_the_log() -> None:
    """A run that waits for another thing by now is read."""

    class Lags(MemoryStore):
        async def flows(self, prefix: str = "", **asked: Any) -> Sequence[StepRecord]:
            page = await super().flows(prefix, **asked)
            return [msgspec.structs.replace(flow, id="another", note={"waiting_for": [["run", "nap"]]}) for flow in page]

    store = Lags()
    await store.append(StepRecord(run_id="run", step_id="nap", kind="sleep", status="waiting"))
    await store.append(StepRecord(run_id="run", step_id="sure", kind="approval", status="waiting"))
    waits = {"waiting_for": [["run", "sure"]]}
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", name="f", status="waiting", note=waits))
    assert [record.step_id async for record in control.pending(store)] == ["sure"]
