"""What an author of stores might write: one store that keeps the contract, and many that break it in one way each.

Not collected here: `test_testing_kit.py` runs it in a place of its own, as an author would.
"""

import asyncio
import functools
import json
import sqlite3
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from durable_core.errors import RunBusy
from durable_core.record import StepRecord
from durable_core.store import Holder
from durable_core.stores.flows import is_among
from durable_core.testing import StoreTests

TABLE = """
create table if not exists entries(
    number integer primary key autoincrement, run text, step text, revision integer, line blob{unique}
)"""
UNIQUE = ", unique(run, step, revision)"


class SQLiteStore:
    """A whole store, without any ability beyond the four methods."""

    unique = UNIQUE
    order = "number"
    highest = "revision desc"
    limit = -1

    def __init__(self, path):
        self._path = path

    async def __aenter__(self):
        self._db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        self._db.execute("pragma synchronous=off")
        self._db.execute(TABLE.format(unique=self.unique))
        return self

    async def __aexit__(self, *error):
        self._db.close()

    def _insert(self, record, verb="insert or ignore"):
        slot = (record.run_id, record.step_id, record.revision)
        self._db.execute(f"{verb} into entries(run, step, revision, line) values(?, ?, ?, ?)", (*slot, record.to_json()))

    def _select(self, where, *values, order=None, limit=-1):
        rows = self._db.execute(f"select line from entries where {where} order by {order or self.order} limit {limit}", values)
        return [StepRecord.from_json(line) for (line,) in rows.fetchall()]

    async def append(self, record):
        self._insert(record)
        slot = (record.run_id, record.step_id, record.revision)
        return self._select("run = ? and step = ? and revision = ?", *slot)[0]

    async def get(self, run_id, step_id):
        return next(iter(self._select("run = ? and step = ?", run_id, step_id, order=self.highest, limit=1)), None)

    async def list(self, run_id):
        return self._select("run = ?", run_id, limit=self.limit)

    async def clear(self, run_id):
        self._db.execute("delete from entries where run = ?", (run_id,))


class LastWriteWins(SQLiteStore):
    async def append(self, record):
        self._insert(record, "insert or replace")
        return record


class LooksThenWrites(SQLiteStore):
    unique = ""

    async def append(self, record):
        slot = (record.run_id, record.step_id, record.revision)
        if held := self._select("run = ? and step = ? and revision = ?", *slot):
            return held[0]
        await asyncio.sleep(0)
        self._insert(record)
        return record


class LooksThenWritesBetweenProcesses(SQLiteStore):
    """Right within a process, since nothing is awaited."""

    unique = ""

    async def append(self, record):
        slot = (record.run_id, record.step_id, record.revision)
        if held := self._select("run = ? and step = ? and revision = ?", *slot):
            return held[0]
        time.sleep(0.002)  # as far apart as a network keeps the two: what is shown doesn't depend on luck
        self._insert(record)
        return record


class LoserIsWritten(SQLiteStore):
    async def append(self, record):
        held = await super().append(record)
        if held.id != record.id:
            self._insert(msgspec.structs.replace(record, revision=record.revision + 1))
        return held


class LoserBelievesItWon(SQLiteStore):
    async def append(self, record):
        await super().append(record)
        return record


class KnowsOnlyIds(SQLiteStore):
    """Takes a record again for a conflict."""

    async def append(self, record):
        if self._select("run = ? and step = ? and revision = ?", record.run_id, record.step_id, record.revision):
            raise ValueError("duplicate key")
        return await super().append(record)


class GetsTheLowest(SQLiteStore):
    highest = "revision"


class GetsTheHighestByText(SQLiteStore):
    highest = "cast(revision as text) desc"


class ListsByStep(SQLiteStore):
    order = "step, revision"


class ListsOnePage(SQLiteStore):
    limit = 1000


class ClearsByPrefix(SQLiteStore):
    async def clear(self, run_id):
        self._db.execute("delete from entries where substr(run, 1, ?) = ?", (len(run_id), run_id))


class ClearsByPattern(SQLiteStore):
    async def clear(self, run_id):
        self._db.execute("delete from entries where run like ?", (run_id,))


class ClearsTheOldestFirst(SQLiteStore):
    async def clear(self, run_id):
        while self._select("run = ?", run_id, limit=1):
            self._db.execute("delete from entries where number = (select min(number) from entries where run = ?)", (run_id,))
            await asyncio.sleep(0)


class ClearsOutcomesOnly(SQLiteStore):
    async def clear(self, run_id):
        self._db.execute("delete from entries where run = ? and revision = 0", (run_id,))


class RemembersForItself(SQLiteStore):
    """Reads a run once, and doesn't see what other stores do."""

    def __init__(self, path):
        super().__init__(path)
        self.list = functools.cache(lambda run_id: asyncio.ensure_future(SQLiteStore.list(self, run_id)))


class ForgetsWhenClosed(SQLiteStore):
    async def __aexit__(self, *error):
        self._db.execute("delete from entries")
        await super().__aexit__(*error)


class IgnoresCase(SQLiteStore):
    unique = ", unique(run collate nocase, step collate nocase, revision)"

    async def append(self, record):
        self._insert(record)
        slot = (record.run_id, record.step_id, record.revision)
        return self._select("run = ? collate nocase and step = ? collate nocase and revision = ?", *slot)[0]


class JoinsIds(SQLiteStore):
    unique = ", unique(run)"

    async def append(self, record):
        key = f"{record.run_id}/{record.step_id}/{record.revision}"
        values = (key, record.step_id, record.revision, record.to_json())
        self._db.execute("insert or ignore into entries(run, step, revision, line) values(?, ?, ?, ?)", values)
        return self._select("run = ?", key)[0]

    async def list(self, run_id):
        return [record for record in self._select("true") if record.run_id == run_id]

    async def get(self, run_id, step_id):
        found = [record for record in await self.list(run_id) if record.step_id == step_id]
        return max(found, key=lambda record: record.revision, default=None)


class SpellsResultsAnew(SQLiteStore):
    def _insert(self, record, verb="insert or ignore"):
        if record.result:
            record = msgspec.structs.replace(record, result=json.dumps(json.loads(record.result)).encode())
        super()._insert(record, verb)


class RoundsTimes(SQLiteStore):
    def _insert(self, record, verb="insert or ignore"):
        super()._insert(msgspec.structs.replace(record, started_at=record.started_at.replace(microsecond=0)), verb)


class TakesSmallResultsOnly(SQLiteStore):
    def _insert(self, record, verb="insert or ignore"):
        if len(record.to_json()) > 1024**2:
            raise ValueError("too large")
        super()._insert(record, verb)


class ACancelledAppendTakesItsBatchAlong(SQLiteStore):
    _batch = None

    async def append(self, record):
        if self._batch is None or self._batch.done():
            self._batch = asyncio.get_running_loop().create_task(asyncio.sleep(0))
        await self._batch  # not shielded
        return await super().append(record)


class NamesRuns(SQLiteStore):
    """Keeps the contract, with the ability to name its runs."""

    async def runs(self, prefix=""):
        for (run_id,) in self._db.execute("select distinct run from entries").fetchall():
            if run_id.startswith(prefix):
                yield run_id


class NamesRunsTwice(SQLiteStore):
    async def runs(self, prefix=""):
        for (run_id,) in self._db.execute("select run from entries").fetchall():
            if run_id.startswith(prefix):
                yield run_id


class NamesRunsByPattern(SQLiteStore):
    async def runs(self, prefix=""):
        for (run_id,) in self._db.execute("select distinct run from entries where run like ? || '%'", (prefix,)).fetchall():
            yield run_id


class NamesClearedRuns(NamesRuns):
    async def clear(self, run_id):
        self._db.execute("update entries set line = null, run = run where run = ?", (run_id,))

    def _select(self, where, *values, order=None, limit=-1):
        return super()._select(f"line is not null and {where}", *values, order=order, limit=limit)


class ScansBackwards(SQLiteStore):
    async def scan(self, run_id):
        for record in reversed(await self.list(run_id)):
            yield record


class Lease:
    def check(self):
        pass


class LocksNothing(SQLiteStore):
    @asynccontextmanager
    async def lock(self, run_id):
        yield Lease()


HELD = {}


class LocksInProcess(SQLiteStore):
    """Right within a process."""

    @asynccontextmanager
    async def lock(self, run_id):
        mine = datetime.now(UTC)
        if HELD.setdefault((self._path, run_id), mine) is not mine:
            raise RunBusy(run_id, holder="somebody", since=HELD[self._path, run_id])
        try:
            yield Lease()
        finally:
            del HELD[self._path, run_id]


class LocksUntilAnErrorComes(LocksInProcess):
    @asynccontextmanager
    async def lock(self, run_id):
        if (self._path, run_id) in HELD:
            raise RunBusy(run_id, holder="somebody", since=None)
        HELD[self._path, run_id] = None
        yield Lease()
        del HELD[self._path, run_id]


class IsUnlockedByTheRefused(LocksInProcess):
    @asynccontextmanager
    async def lock(self, run_id):
        try:
            if (self._path, run_id) in HELD:
                raise RunBusy(run_id, holder="somebody", since=None)
            HELD[self._path, run_id] = None
            yield Lease()
        finally:
            HELD.pop((self._path, run_id), None)


class LocksAllRunsAtOnce(LocksInProcess):
    @asynccontextmanager
    async def lock(self, run_id):
        try:
            async with super().lock("all") as lease:
                yield lease
        except RunBusy as busy:
            raise RunBusy(run_id, holder=busy.holder, since=busy.since) from busy


class LocksOnlyRuns(LocksInProcess):
    @asynccontextmanager
    async def lock(self, run_id):
        async with super().lock("nobody" if run_id.startswith("$") else run_id) as lease:
            yield lease


class TellsNobody(LocksInProcess):
    @asynccontextmanager
    async def lock(self, run_id):
        try:
            async with super().lock(run_id) as lease:
                yield lease
        except RunBusy as busy:
            raise RunBusy(run_id, holder="", since=busy.since and busy.since.replace(tzinfo=None)) from busy


class TellsHolders(LocksInProcess):
    """Right within a process, holders too."""

    async def holder(self, run_id):
        since = HELD.get((self._path, run_id))
        return Holder("somebody", since) if since else None

    async def holders(self, run_ids):
        return {run_id: holder for run_id in run_ids if (holder := await self.holder(run_id))}


class RemembersHolders(TellsHolders):
    @asynccontextmanager
    async def lock(self, run_id):
        async with super().lock(run_id) as lease:
            self.last = {**getattr(self, "last", {}), run_id: HELD[self._path, run_id]}
            yield lease

    async def holder(self, run_id):
        since = getattr(self, "last", {}).get(run_id)
        return Holder("somebody", since) if since else await super().holder(run_id)


class TakesTheLockToLook(TellsHolders):
    async def holder(self, run_id):
        try:
            async with self.lock(run_id):
                await asyncio.sleep(0)
        except RunBusy as busy:
            return Holder(busy.holder, busy.since)
        return None


class NamesHoldersOfAll(TellsHolders):
    async def holders(self, run_ids):
        return {run_id: await self.holder(run_id) for run_id in run_ids}


class Marks(SQLiteStore):
    """Keeps the contract, with the ability to tell which runs changed."""

    async def marks(self, prefix=""):
        found = self._db.execute("select run, max(number) from entries group by run").fetchall()
        return {run_id: mark for run_id, mark in found if run_id.startswith(prefix)}


class MarksByTheNumberOfSteps(Marks):
    async def marks(self, prefix=""):
        found = self._db.execute("select run, count(distinct step), min(number) from entries group by run").fetchall()
        return {run_id: (steps, first) for run_id, steps, first in found if run_id.startswith(prefix)}


class MarksAnewEachTime(Marks):
    async def marks(self, prefix=""):
        return {run_id: object() for run_id in await super().marks(prefix)}


class MarksByTheNumberOfEntries(Marks):
    async def marks(self, prefix=""):
        found = self._db.execute("select run, count(*) from entries group by run").fetchall()
        return {run_id: mark for run_id, mark in found if run_id.startswith(prefix)}


class MarksAllRuns(Marks):
    async def marks(self, prefix=""):
        return await super().marks()


class Polls(SQLiteStore):
    """Keeps the contract, with the ability to look at many steps at once."""

    poll_seconds = 1.0

    async def newer(self, known):
        newest = [(await self.get(run_id, step_id), revision) for run_id, step_id, revision in known]
        return [record for record, revision in newest if record and record.revision > revision]


class PollsAllTheTime(Polls):
    poll_seconds = 0


class FindsNothingNew(Polls):
    async def newer(self, known):
        return [record for record in await super().newer(known) if record.revision]


class FindsWhatIsKnown(Polls):
    async def newer(self, known):
        return await super().newer([(run_id, step_id, revision - 1) for run_id, step_id, revision in known])


class FindsTheNextOnly(Polls):
    async def newer(self, known):
        found = [self._select("run = ? and step = ? and revision > ?", *slot, order="revision", limit=1) for slot in known]
        return [record for records in found for record in records]


class FindsStepsOfAllRuns(Polls):
    async def newer(self, known):
        return [record for _, step, revision in known for record in self._select("step = ? and revision > ?", step, revision)]


class LooksAtAHundred(Polls):
    async def newer(self, known):
        return await super().newer(known[:100])


class FindsFlows(SQLiteStore):
    """Keeps the contract, with the ability to find runs by how they stand."""

    newest = "revision desc"

    def _flows(self):
        runs = self._db.execute("select distinct run from entries where step = '$flow'").fetchall()
        return [self._select("run = ? and step = '$flow'", run, order=self.newest, limit=1)[0] for (run,) in runs]

    async def flows(self, prefix="", *, names=None, states=None, since=None, before=None, limit=50):
        asked = {"names": names, "states": states, "since": since, "before": before}
        found = [flow for flow in self._flows() if is_among(flow, prefix, **asked)]
        return sorted(found, key=self.place, reverse=True)[:limit]

    @staticmethod
    def place(flow):
        return flow.started_at, flow.run_id


class FindsFirstEntries(FindsFlows):
    newest = "revision"


class FindsAllThatAreFlows(FindsFlows):
    def _flows(self):
        return self._select('line like \'%"kind":"flow"%\'')


class FindsFlowsInAnyOrder(FindsFlows):
    @staticmethod
    def place(flow):
        return flow.started_at


class FindsFlowsToTheSecond(FindsFlows):
    @staticmethod
    def place(flow):
        return flow.started_at.replace(microsecond=0), flow.run_id


class FindsFlowsByPattern(FindsFlows):
    async def flows(self, prefix="", **asked):
        likes = {run for (run,) in self._db.execute("select run from entries where run like ?", (f"{prefix}%",))}
        return [flow for flow in await super().flows("", **asked) if flow.run_id in likes]


class FindsFlowsByTimeAlone(FindsFlows):
    async def flows(self, prefix="", *, before=None, **asked):
        return await super().flows(prefix, before=before and (before[0], ""), **asked)


class FiltersAfterThePage(FindsFlows):
    async def flows(self, prefix="", *, states=None, limit=50, **asked):
        page = await super().flows(prefix, limit=limit, **asked)
        return [flow for flow in page if is_among(flow, states=states)]


class FindsNoNamesForAll(FindsFlows):
    async def flows(self, prefix="", *, names=None, states=None, **asked):
        return await super().flows(prefix, names=names or None, states=states or None, **asked)


class FindsFlowsSince(FindsFlows):
    async def flows(self, prefix="", *, since=None, **asked):
        return await super().flows(prefix, since=since and since + timedelta(microseconds=1), **asked)


FLOWS = {}


class RemembersFlows(FindsFlows):
    """Keeps an index in memory, which other processes don't see."""

    index = FLOWS

    async def append(self, record):
        held = await super().append(record)
        known = self.index.setdefault(self._path, {})
        if record.step_id == "$flow" and self.takes(known.get(record.run_id), record, held):
            known[record.run_id] = record
        return held

    def takes(self, known, record, held):
        return held.id == record.id and (known is None or known.revision < record.revision)

    async def clear(self, run_id):
        await super().clear(run_id)
        self.index.get(self._path, {}).pop(run_id, None)

    def _flows(self):
        return [*self.index.get(self._path, {}).values()]


class IndexesLosers(RemembersFlows):
    def takes(self, known, record, held):
        return known is None or known.revision <= record.revision


class IndexesTheLatest(RemembersFlows):
    def takes(self, known, record, held):
        return held.id == record.id


class FindsClearedFlows(RemembersFlows):
    async def clear(self, run_id):
        await SQLiteStore.clear(self, run_id)


class MisspellsLock(SQLiteStore):
    abilities = frozenset({"lock"})

    @asynccontextmanager
    async def lokc(self, run_id):
        yield Lease()


class HidesItsRuns(NamesRuns):
    abilities = frozenset()


class NamesWhatIsNoAbility(NamesRuns):
    abilities = frozenset({"runs", "locks"})


class DeclaresNothing(NamesRuns):
    abilities = None


class IsUnlockedByClear(LocksInProcess):
    async def clear(self, run_id):
        HELD.pop((self._path, run_id), None)
        await super().clear(run_id)

    @asynccontextmanager
    async def lock(self, run_id):
        if HELD.setdefault((self._path, run_id), self) is not self:
            raise RunBusy(run_id, holder="somebody", since=None)
        try:
            yield Lease()
        finally:
            HELD.pop((self._path, run_id), None)


# What each broken store is caught by, at least.
BROKEN = {
    LastWriteWins: "test_a_taken_slot_returns_its_holder",
    LooksThenWrites: "test_tasks_race_for_one_slot",
    LooksThenWritesBetweenProcesses: "test_processes_race_for_slots",
    LoserIsWritten: "test_a_taken_slot_returns_its_holder",
    LoserBelievesItWon: "test_stores_race_for_slots",
    KnowsOnlyIds: "test_the_same_record_again_is_found",
    GetsTheLowest: "test_revisions_chain",
    GetsTheHighestByText: "test_revisions_chain",
    ListsByStep: "test_list_is_in_order_of_append",
    ListsOnePage: "test_a_long_run",
    ClearsByPrefix: "test_clearing_a_hostile_id_leaves_the_others",
    ClearsByPattern: "test_clearing_a_hostile_id_leaves_the_others",
    ClearsTheOldestFirst: "test_a_run_that_is_cleared_while_it_is_read",
    ClearsOutcomesOnly: "test_clear_takes_the_run_asked_and_no_other",
    RemembersForItself: "test_cleared_slots_are_free",
    ForgetsWhenClosed: "test_reopening_finds_everything",
    IgnoresCase: "test_hostile_run_ids_stay_apart",
    JoinsIds: "test_pairs_that_join_alike_stay_apart",
    SpellsResultsAnew: "test_results_come_back_byte_for_byte",
    RoundsTimes: "test_every_field_comes_back_exactly",
    TakesSmallResultsOnly: "test_results_of_every_size",
    ACancelledAppendTakesItsBatchAlong: "test_a_cancelled_append_harms_no_other",
    NamesRunsTwice: "test_runs_names_each_run_once",
    NamesRunsByPattern: "test_runs_takes_a_prefix_as_it_is",
    NamesClearedRuns: "test_runs_leaves_out_what_was_cleared",
    ScansBackwards: "test_scan_reads_what_list_returns",
    LocksNothing: "test_a_lock_keeps_others_out",
    LocksInProcess: "test_processes_keep_each_other_out",
    LocksUntilAnErrorComes: "test_a_lock_is_free_after_its_holder",
    IsUnlockedByTheRefused: "test_a_refused_lock_does_not_free_the_holders",
    LocksAllRunsAtOnce: "test_locks_of_other_runs_are_free",
    LocksOnlyRuns: "test_names_that_are_no_runs_have_locks",
    TellsNobody: "test_a_lock_keeps_others_out",
    IsUnlockedByClear: "test_a_lock_is_no_entry",
    RemembersHolders: "test_nobody_holds_a_lock_that_was_given_back",
    TakesTheLockToLook: "test_asking_who_holds_a_lock_does_not_take_it",
    NamesHoldersOfAll: "test_holders_names_only_runs_that_are_held",
    MarksByTheNumberOfSteps: "test_an_append_changes_the_mark",
    MarksAnewEachTime: "test_a_mark_stays_while_nothing_is_appended",
    MarksByTheNumberOfEntries: "test_a_cleared_run_has_another_mark_when_it_begins_anew",
    MarksAllRuns: "test_each_run_has_a_mark",
    PollsAllTheTime: "test_how_often_to_look_is_told",
    FindsNothingNew: "test_a_step_without_entries_is_known_by_minus_one",
    FindsWhatIsKnown: "test_nothing_newer_is_nothing",
    FindsTheNextOnly: "test_the_newest_entry_is_found",
    FindsStepsOfAllRuns: "test_a_look_finds_no_other_runs_entries",
    LooksAtAHundred: "test_many_steps_are_looked_at_in_one_call",
    FindsFirstEntries: "test_the_newest_entry_of_a_flow_is_found",
    FindsAllThatAreFlows: "test_other_steps_are_no_flows",
    FindsFlowsInAnyOrder: "test_flows_come_in_order",
    FindsFlowsToTheSecond: "test_flows_come_in_order",
    FindsFlowsByPattern: "test_a_prefix_is_taken_as_it_is",
    FindsFlowsByTimeAlone: "test_pages_follow_each_other",
    FiltersAfterThePage: "test_filters_hold_together",
    FindsNoNamesForAll: "test_flows_are_found_by_name",
    FindsFlowsSince: "test_since_is_the_first_moment_that_counts",
    RemembersFlows: "test_flows_of_several_processes_are_found",
    IndexesLosers: "test_an_append_that_lost_its_slot_changes_no_index",
    IndexesTheLatest: "test_a_lower_revision_that_comes_late_is_not_the_newest",
    FindsClearedFlows: "test_a_cleared_run_is_not_found",
    MisspellsLock: "test_the_store_has_the_abilities_that_are_declared",
    HidesItsRuns: "test_the_store_has_the_abilities_that_are_declared",
    NamesWhatIsNoAbility: "test_the_store_has_the_abilities_that_are_declared",
    DeclaresNothing: "test_the_store_has_the_abilities_that_are_declared",
}


class TestNamesRuns(StoreTests):
    abilities = frozenset({"runs"})

    @pytest.fixture
    def open_store(self, tmp_path):
        return functools.partial(NamesRuns, tmp_path / "log.sqlite")


class TestTellsHolders(StoreTests):
    abilities = frozenset({"lock", "holder"})

    @pytest.fixture
    def open_store(self, tmp_path):
        return functools.partial(TellsHolders, tmp_path / "log.sqlite")


class TestPolls(StoreTests):
    abilities = frozenset({"polling"})

    @pytest.fixture
    def open_store(self, tmp_path):
        return functools.partial(Polls, tmp_path / "log.sqlite")


class TestMarks(StoreTests):
    abilities = frozenset({"marks"})

    @pytest.fixture
    def open_store(self, tmp_path):
        return functools.partial(Marks, tmp_path / "log.sqlite")


class TestFindsFlows(StoreTests):
    abilities = frozenset({"flows"})

    @pytest.fixture
    def open_store(self, tmp_path):
        return functools.partial(FindsFlows, tmp_path / "log.sqlite")


class TestUnpicklable(StoreTests):
    abilities = frozenset()

    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: SQLiteStore(tmp_path / "log.sqlite")


class TestForgotten(StoreTests):
    abilities = frozenset()


METHODS = {name: name for name in ("runs", "scan", "lock", "holder", "marks", "flows")} | {"polling": "newer"}


def _tests_of(store):
    class Tests(StoreTests):
        abilities = getattr(store, "abilities", {name for name, method in METHODS.items() if hasattr(store, method)})

        @pytest.fixture
        def open_store(self, tmp_path):
            return functools.partial(store, tmp_path / "log.sqlite")

    Tests.__name__ = Tests.__qualname__ = f"Test{store.__name__}"
    return Tests


globals().update({f"Test{store.__name__}": _tests_of(store) for store in BROKEN})
