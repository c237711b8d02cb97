"""The ability to find runs by how they stand, where a store has it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from durable_core.errors import RunCancelled
from durable_core.record import StepError, StepRecord
from durable_core.store import SupportsFlows, flows_of
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, is_among, state_of
from durable_core.testing._processes import Child, append_all
from durable_core.testing._samples import HOSTILE_IDS, SIMILAR_IDS, OpenStore

from .abilities import AbilityTests

BEGAN: Final = datetime(2026, 3, 29, 1, 59, 59, 999_990, tzinfo=UTC)
_CANCELLED: Final = StepError.from_exception(
    RunCancelled(StepRecord(run_id="run", step_id=FLOW, kind="flow", note={"cancelled": {"reason": "enough"}}))
)
_ENTRIES: Final[dict[FlowState, dict[str, Any]]] = {
    "waiting": {"status": "waiting", "until": BEGAN + timedelta(days=1), "note": {"waiting_for": [["run", "go"]]}},
    "started": {"status": "started", "note": {"input": {"amount": 90}}},
    "crashed": {"status": "reopened", "error": StepError("NameError", "totl")},
    "parked": {"status": "waiting", "note": {"parked": {"step": "pay", "why": "interrupted", "mend": "resolve"}}},
    "cancelling": {"status": "reopened", "note": {"cancelled": {"reason": None, "by": "alice"}}},
    "succeeded": {"status": "success", "result": b'{"a": 1e400}', "note": {"cancelled": {"late": True}}},
    "failed": {"status": "failure", "error": StepError("OSError"), "note": {"failed": ["pay"], "cancelled": {"by": "bob"}}},
    "cancelled": {"status": "failure", "error": _CANCELLED},
}
"""Of each state an entry that says it."""


def flow_entry(run_id: str = "run", state: FlowState = "started", revision: int = 0, **fields: Any) -> StepRecord:
    """Make an entry of `$flow` that says how its run stands."""
    fields = {"name": "pay", "started_at": BEGAN, **_ENTRIES[state], **fields}
    return StepRecord(run_id=run_id, step_id=FLOW, revision=revision, kind="flow", **fields)


class FlowsTests(AbilityTests):
    many_flows: int = 130
    """Flows of the fullest index; let it be more than one page of the backend."""

    async def test_flows_of_an_empty_store(self, open_store: OpenStore) -> None:
        """Where there are no runs, whatever is asked for finds none."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            assert [*await index.flows()] == []
            assert [*await index.flows("run", names=["pay"], states=["failed"], since=BEGAN, before=(BEGAN, "run"))] == []

    async def test_the_newest_entry_of_a_flow_is_found(self, open_store: OpenStore) -> None:
        """After each append the entry is found from anywhere, whole, and its run under no other state."""
        async with open_store() as store, open_store() as other:
            indexes = [self.ability(flows_of, reader) for reader in (store, other)]
            states: list[FlowState] = ["waiting", "started", "crashed", "started", "parked", "waiting", "started", "failed"]
            states += ["waiting", "started", "cancelling", "cancelled", "waiting", "succeeded"]
            for revision, state in enumerate(states):
                record = flow_entry(state=state, revision=revision)
                assert state_of(record) == state
                await store.append(record)
                for index in indexes:
                    found = [record] if state in _held(index) else []
                    assert [*await index.flows()] == found
                    for each in FLOW_STATES:
                        assert [*await index.flows(states=[each])] == (found if each == state else []), (state, each)

    async def test_other_steps_are_no_flows(self, open_store: OpenStore) -> None:
        """A run without `$flow` is not found, and other entries of a run change nothing, later and longer ones either."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            for step_id in ("flow", "$flow ", "$Flow", "$flow/x", "$cancel", "step"):
                record = StepRecord(run_id="plain", step_id=step_id, kind="flow", name="pay", status="started")
                await store.append(record)
            assert [*await index.flows()] == []
            flow = await store.append(flow_entry("run", "parked", 3))
            for revision in range(5):
                await store.append(StepRecord(run_id="run", step_id="step", revision=revision, status="failure"))
            assert [*await index.flows()] == [*await index.flows(states=["parked"])] == [flow]

    async def test_an_append_that_lost_its_slot_changes_no_index(self, open_store: OpenStore) -> None:
        """What is found is what stands in the log, whoever asked for the slot, and however often."""
        async with open_store() as store, open_store() as other:
            index = self.ability(flows_of, other)
            held = await store.append(flow_entry(state="waiting"))
            for state in FLOW_STATES:
                loser = flow_entry(state=state, name="another", started_at=BEGAN + timedelta(days=1))
                assert await other.append(loser) == held
            assert [*await index.flows()] == [*await index.flows(states=["waiting"])] == [held]
            await store.append(held)
            assert [*await index.flows()] == [*await index.flows(states=["waiting"])] == [held]
            assert [*await index.flows(names=["another"])] == []
            assert [*await index.flows(states=FLOW_STATES - {"waiting"})] == []

    async def test_a_lower_revision_that_comes_late_is_not_the_newest(self, open_store: OpenStore) -> None:
        """The highest revision counts, in whatever order entries were appended."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            newest = await store.append(flow_entry(state="parked", revision=9))
            await store.append(flow_entry(state="started", revision=8, started_at=BEGAN + timedelta(hours=1)))
            assert [*await index.flows()] == [*await index.flows(states=["parked"])] == [newest]
            assert [*await index.flows(states=["started"])] == []

    async def test_flows_come_in_order(self, open_store: OpenStore) -> None:
        """The last that began comes first, to the microsecond; of those that began together the highest id, by code points."""
        async with open_store() as store, open_store() as other:
            index = self.ability(flows_of, other)
            moments = [BEGAN + timedelta(microseconds=number) for number in (0, 1, 9, 10, 11)]
            moments += [BEGAN - timedelta(days=200 * 365), BEGAN + timedelta(days=200 * 365), datetime(1970, 1, 1, tzinfo=UTC)]
            records = [flow_entry(run_id, started_at=moments[number % len(moments)]) for number, run_id in enumerate(HOSTILE_IDS)]
            random.Random(7).shuffle(records)
            await asyncio.gather(*map(store.append, records))
            assert _ids(await index.flows(limit=len(records) + 1)) == _ids(_in_order(records))

    async def test_a_run_stands_where_its_newest_entry_began(self, open_store: OpenStore) -> None:
        """A clock that was set back moves a run; it is found in its new place, and nowhere else."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            for number, run_id in enumerate("abc"):
                await store.append(flow_entry(run_id, started_at=BEGAN + timedelta(minutes=number)))
            assert _ids(await index.flows()) == ["c", "b", "a"]
            await store.append(flow_entry("c", revision=1, started_at=BEGAN - timedelta(minutes=1)))
            assert _ids(await index.flows()) == ["b", "a", "c"]
            assert _ids(await index.flows(before=(BEGAN, "a"))) == ["c"]
            assert _ids(await index.flows(since=BEGAN)) == ["b", "a"]

    async def test_pages_follow_each_other(self, open_store: OpenStore) -> None:
        """The last of a page asks for the next one: every run comes once, in pages that are full but for the last."""
        async with open_store() as store, open_store() as other:
            index = self.ability(flows_of, other)
            moments = [BEGAN + timedelta(microseconds=number) for number in range(7)]  # so that many began together
            records = [flow_entry(f"run {number}", started_at=moments[number % 7]) for number in range(self.many_flows)]
            await asyncio.gather(*map(store.append, records))
            expected = _ids(_in_order(records))
            for limit in (self.many_flows // 3, self.many_flows, self.many_flows + 1):
                pages = await _pages(index, limit)
                assert [run_id for page in pages for run_id in page] == expected
                assert {len(page) for page in pages[:-1]} <= {limit}
            assert _ids(await index.flows()) == expected[:50]
            assert _ids(await index.flows(limit=1)) == expected[:1]
            assert _ids(await index.flows(before=(BEGAN + timedelta(days=1), "a"), limit=3)) == expected[:3]
            assert [*await index.flows(before=(BEGAN, ""))] == []

    async def test_runs_that_come_and_go_between_pages_move_no_others(self, open_store: OpenStore) -> None:
        """A page goes on after the place of the last one, whether that run is still there or not."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            for number in range(12):
                await store.append(flow_entry(f"run {number:02}", started_at=BEGAN + timedelta(seconds=number)))
            page = await index.flows(limit=4)
            last = page[-1]
            await store.clear(last.run_id)
            await store.append(flow_entry("new", started_at=BEGAN + timedelta(hours=1)))
            await store.append(flow_entry("run 07", "parked", 1, started_at=BEGAN + timedelta(seconds=7)))
            page = await index.flows(before=(last.started_at, last.run_id), limit=4)
            assert _ids(page) == ["run 07", "run 06", "run 05", "run 04"]
            assert state_of(page[0]) == "parked"

    async def test_a_prefix_is_taken_as_it_is(self, open_store: OpenStore) -> None:
        """It is compared character by character: `%` and `_` are no patterns, and case counts."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            ids = [*HOSTILE_IDS, "50%", "50%-off", "500", "a_b", "axb", "a_", "a", "A_b"]
            records = [flow_entry(run_id) for run_id in dict.fromkeys(ids)]
            await asyncio.gather(*map(store.append, records))
            starts = {run_id[:length] for run_id in ids for length in (1, 2)} | {*SIMILAR_IDS, "nobody", "50%", "a_", "%s", ""}
            for prefix in sorted(starts):
                expected = _ids(_in_order(record for record in records if record.run_id.startswith(prefix)))
                assert _ids(await index.flows(prefix, limit=1000)) == expected, prefix
                assert _ids(await index.flows(prefix, states=["started"], names=["pay"], limit=1000)) == expected, prefix

    async def test_flows_are_found_by_name(self, open_store: OpenStore) -> None:
        """By one of several names, each taken as it is; no names find nothing."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            names = ["pay", "Pay", "pay ", "pa_", "pa%", "pay%", "'; drop table steps; --", "日本語", "x" * 600]
            records = [flow_entry(f"run {number}", name=name) for number, name in enumerate(names * 2)]
            await asyncio.gather(*map(store.append, records))
            for name in (*names, "nobody"):
                expected = _ids(_in_order(record for record in records if record.name == name))
                assert _ids(await index.flows(names=[name])) == expected, name
            assert _ids(await index.flows(names={"pay", "日本語", "nobody"})) == _ids(
                _in_order(record for record in records if record.name in ("pay", "日本語"))
            )
            assert [*await index.flows(names=[])] == []
            assert [*await index.flows(states=[])] == []

    async def test_filters_hold_together(self, open_store: OpenStore) -> None:
        """Whatever is asked for at once, what is found fits all of it, in order and in pages."""
        async with open_store() as store, open_store() as other:
            index = self.ability(flows_of, other)
            chance = random.Random(11)
            states = sorted(FLOW_STATES)
            records = [
                flow_entry(
                    f"{chance.choice(['a', 'a_', 'b%'])}{number}",
                    chance.choice(states),
                    name=chance.choice(["pay", "ship"]),
                    started_at=BEGAN + timedelta(seconds=chance.randrange(20)),
                )
                for number in range(self.many_flows)
            ]
            await asyncio.gather(*map(store.append, records))
            for _ in range(40):
                asked: dict[str, Any] = {
                    "names": chance.choice([None, ["pay"], ["ship", "pay"]]),
                    "states": chance.choice([None, [chance.choice(states)], chance.sample(states, 3), FLOW_STATES]),
                    "since": chance.choice([None, BEGAN + timedelta(seconds=chance.randrange(20))]),
                }
                before = chance.choice([None, (BEGAN + timedelta(seconds=chance.randrange(20)), chance.choice(records).run_id)])
                prefix = chance.choice(["", "a", "a_", "b%", "%"])
                expected = _ids(
                    _in_order(
                        record
                        for record in records
                        if state_of(record) in _held(index) and is_among(record, prefix, before=before, **asked)
                    )
                )
                pages = await _pages(index, 7, prefix, before, **asked)
                assert [run_id for page in pages for run_id in page] == expected, (prefix, before, asked)

    async def test_since_is_the_first_moment_that_counts(self, open_store: OpenStore) -> None:
        """What began at `since` is found, what began a microsecond earlier is not, whatever the zone that says it."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            for number in range(4):
                await store.append(flow_entry(f"run {number}", started_at=BEGAN + timedelta(microseconds=number)))
            since = (BEGAN + timedelta(microseconds=2)).astimezone(tz=None)
            assert _ids(await index.flows(since=since)) == ["run 3", "run 2"]
            assert _ids(await index.flows(before=(since, "run 2"))) == ["run 1", "run 0"]

    async def test_a_cleared_run_is_not_found(self, open_store: OpenStore) -> None:
        """From nowhere, under no state; and again once it has an entry anew, as that stands."""
        async with open_store() as store, open_store() as other:
            indexes = [self.ability(flows_of, reader) for reader in (store, other)]
            for run_id in ("one", "two", "two/child"):
                for revision, state in enumerate(("waiting", "started", "parked")):
                    await store.append(flow_entry(run_id, state, revision))  # type: ignore[arg-type]  # mypy widens the names
            await store.append(StepRecord(run_id="two", step_id="step"))
            await store.clear("two")
            for index in indexes:
                assert _ids(await index.flows()) == ["two/child", "one"]
                assert _ids(await index.flows(states=["parked"])) == ["two/child", "one"]
                assert _ids(await index.flows("two")) == ["two/child"]
            await store.clear("two")
            await other.append(flow_entry("two", "started", started_at=BEGAN + timedelta(days=1)))
            for index in indexes:
                assert _ids(await index.flows()) == ["two", "two/child", "one"]
                assert _ids(await index.flows(states=["started"])) == ["two"]

    async def test_tasks_race_for_the_entries_of_many_flows(self, open_store: OpenStore) -> None:
        """However appends of many runs run into each other, each run is found by the entry that won, once."""
        async with open_store() as store, open_store() as other:
            index = self.ability(flows_of, store)
            states = sorted(FLOW_STATES)
            for revision in range(3):
                rivals = [
                    flow_entry(f"run {number}", states[(number + revision + rival) % len(states)], revision)
                    for number in range(40)
                    for rival in range(2)
                ]
                await asyncio.gather(*((store, other)[place % 2].append(record) for place, record in enumerate(rivals)))
            newest = [await store.get(f"run {number}", FLOW) for number in range(40)]
            expected = _in_order(record for record in newest if record is not None and state_of(record) in _held(index))
            assert [*await index.flows()] == expected
            for state in states:
                assert [*await index.flows(states=[state])] == [record for record in expected if state_of(record) == state]

    async def test_flows_of_several_processes_are_found(self, open_store: OpenStore) -> None:
        """What other processes append is found here, each run once, as its newest entry stands."""
        async with open_store() as store:
            index = self.ability(flows_of, store)
            chains: Sequence[tuple[FlowState, ...]] = (
                ("started", "parked"),
                ("waiting", "started"),
                ("started", "crashed"),
            )
            work = [
                [flow_entry(f"{place}-{number}", state, revision) for number in range(20) for revision, state in enumerate(chain)]
                for place, chain in enumerate(chains)
            ]
            for records in work:
                records.append(flow_entry("contested", "started"))
            async with (
                Child(append_all, open_store, work[0]) as one,
                Child(append_all, open_store, work[1]) as two,
                Child(append_all, open_store, work[2]) as three,
            ):
                children = (one, two, three)
                for child in children:
                    assert await child.receive() == "ready"
                for child in children:
                    await child.send("go")
                for child in children:
                    await child.receive()
            for place, chain in enumerate(chains):
                found = await index.flows(f"{place}-", states=[chain[-1]])
                assert {record.run_id for record in found} == {f"{place}-{number}" for number in range(20)}
                assert {record.revision for record in found} == {1}
            assert _ids(await index.flows("contested")) == ["contested"]
            assert len(await index.flows(limit=100)) == 61


def _held(index: SupportsFlows) -> Collection[FlowState]:
    """Return the states that the index holds."""
    held: Collection[FlowState] | None = getattr(index, "flow_states", None)
    return FLOW_STATES if held is None else held


def _in_order(records: Iterable[StepRecord]) -> list[StepRecord]:
    return sorted(records, key=lambda record: (record.started_at, record.run_id), reverse=True)


def _ids(records: Iterable[StepRecord]) -> list[str]:
    return [record.run_id for record in records]


async def _pages(
    index: SupportsFlows, limit: int, prefix: str = "", before: tuple[datetime, str] | None = None, **asked: Any
) -> list[list[str]]:
    """Read page after page until there are no more."""
    pages: list[list[str]] = []
    while page := await index.flows(prefix, before=before, limit=limit, **asked):
        pages.append(_ids(page))
        before = (page[-1].started_at, page[-1].run_id)
    return pages
