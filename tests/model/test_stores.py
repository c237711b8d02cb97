"""Every store does what a `MemoryStore` does, whatever is asked of it in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from durable_core import MemoryStore, RunBusy, StepRecord, open_store
from durable_core.store import WakeUp
from durable_core.stores.flows import FLOW_STATES

CLIENTS: Final = (0, 1, 2)
RUNS: Final = ("plain", "plain/child", "ü %/..\\", "$library")
STEPS: Final = ("a", "a/b", "ä\N{SNOWMAN}", "$flow")
STATUSES: Final = ("started", "waiting", "reopened", "failure", "success")
BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
EXAMPLES: Final = {"file": 25, "sqlite": 25, "redis": 25, "postgresql": 8, "s3": 8}
_numbers: Final = count()


class StoreMachine(RuleBasedStateMachine):
    """Does the same with a store, over several clients of it, and with a `MemoryStore`, and compares what they answer."""

    url: ClassVar[str]
    loop: ClassVar[asyncio.Runner]

    records = Bundle("records")
    wakeups = Bundle("wakeups")

    def __init__(self) -> None:
        super().__init__()
        self.model = MemoryStore()
        self.place = f"{next(_numbers)}-"
        """What the ids of runs and names of flows begin with, so that each example has a place of its own."""
        self.ids = count()
        self.opened = [AsyncExitStack() for _ in CLIENTS]
        self.clients: list[Any] = [self.do(each.enter_async_context(open_store(self.url))) for each in self.opened]
        self.held: dict[str, tuple[int, AbstractAsyncContextManager[Any]]] = {}
        """Of each run whose lock is held the client that has it."""
        self.shown: dict[str, tuple[WakeUp, set[int]]] = {}
        """Wake-ups that were not cleared, by their tokens, and which clients don't get them any more."""
        self.marks: dict[str, Any] = {}
        self.changed: set[str] = set()
        """Runs that were appended to since the marks were read."""

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    def teardown(self) -> None:
        for _, context in self.held.values():
            self.do(context.__aexit__(None, None, None))
        for each in self.opened:
            self.do(each.aclose())

    def record(self, run: str, step: str, revision: int, status: str) -> StepRecord:
        number = RUNS.index(run)
        began = BEGAN + timedelta(minutes=number // 2)  # some began in the same moment
        return StepRecord(
            run_id=self.place + run,
            step_id=step,
            revision=revision,
            status=status,  # type: ignore[arg-type]
            kind="flow" if step == "$flow" else "step",
            name=f"{self.place}{'ship' if number % 3 else 'bill'}" if step == "$flow" else "name \N{SNOWMAN}",
            result=b'{"a":[1,null,"\\u2603"]}' if status == "success" else None,
            note={"number": revision} if revision else None,
            until=began + HOUR if status == "waiting" else None,
            started_at=began,
            ended_at=began + timedelta(seconds=1),
            id=f"{next(self.ids):024}",
        )

    def newest(self, run_id: str, step: str) -> StepRecord | None:
        found: StepRecord | None = self.do(self.model.get(run_id, step))
        return found

    def next_revision(self, run_id: str, step: str) -> int:
        """The next one; a flow that succeeded has none."""
        if (newest := self.newest(run_id, step)) is None:
            return 0
        return newest.revision + (step != "$flow" or newest.status != "success")

    def append_to_both(self, client: int, record: StepRecord) -> None:
        before = self.newest(record.run_id, record.step_id)
        expected = self.do(self.model.append(record))
        assert self.do(self.clients[client].append(record)) == expected
        if before is None or expected.revision > before.revision:
            self.changed.add(record.run_id)

    # The log.

    @rule(
        target=records,
        client=st.sampled_from(CLIENTS),
        run=st.sampled_from(RUNS),
        step=st.sampled_from(STEPS),
        status=st.sampled_from(STATUSES),
        back=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def append(self, client: int, run: str, step: str, status: str, back: int) -> StepRecord:
        """The next entry, or one for a slot that is taken."""
        revision = max(0, self.next_revision(self.place + run, step) - back)
        record = self.record(run, step, revision, status)
        self.append_to_both(client, record)
        return record

    @rule(client=st.sampled_from(CLIENTS), record=records)
    def append_again(self, client: int, record: StepRecord) -> None:
        """As after an answer that was lost; to a run that was cleared since, too, if that leaves no hole."""
        if record.revision <= self.next_revision(record.run_id, record.step_id):
            self.append_to_both(client, record)

    @rule(
        run=st.sampled_from(RUNS),
        step=st.sampled_from(STEPS),
        statuses=st.lists(st.sampled_from(STATUSES), min_size=2, max_size=6),
    )
    def race(self, run: str, step: str, statuses: list[str]) -> None:
        """Several appends to one slot at once: one wins, and all get it."""
        revision = self.next_revision(self.place + run, step)
        rivals = [self.record(run, step, revision, status) for status in statuses]

        async def together() -> list[StepRecord]:
            return await asyncio.gather(*(self.clients[n % len(CLIENTS)].append(each) for n, each in enumerate(rivals)))

        answers = self.do(together())
        assert answers == [answers[0]] * len(rivals)
        expected = self.do(self.model.append(answers[0]))
        assert answers[0] == expected
        assert expected in rivals or self.newest(self.place + run, step) not in rivals
        self.changed.add(self.place + run)

    @rule(client=st.sampled_from(CLIENTS), run=st.sampled_from(RUNS), count=st.integers(2, 9))
    def append_many(self, client: int, run: str, count: int) -> None:
        """Appends to many slots at once, which a store may combine: all are there, in some order."""
        steps = [f"many-{next(self.ids)}" for _ in range(count)]
        records = [self.record(run, step, 0, "success") for step in steps]

        async def together() -> None:
            assert await asyncio.gather(*(self.clients[client].append(each) for each in records)) == records

        self.do(together())
        order = [each.step_id for each in self.do(self.clients[client].list(self.place + run)) if each.step_id in steps]
        assert sorted(order) == sorted(steps)
        for step in order:
            self.do(self.model.append(next(each for each in records if each.step_id == step)))
        self.changed.add(self.place + run)

    @rule(client=st.sampled_from(CLIENTS), run=st.sampled_from(RUNS), step=st.sampled_from([*STEPS, "never"]))
    def get(self, client: int, run: str, step: str) -> None:
        assert self.do(self.clients[client].get(self.place + run, step)) == self.do(self.model.get(self.place + run, step))

    @rule(client=st.sampled_from(CLIENTS), run=st.sampled_from(RUNS))
    def read(self, client: int, run: str) -> None:
        store, run_id = self.clients[client], self.place + run
        expected = [*self.do(self.model.list(run_id))]
        assert [*self.do(store.list(run_id))] == expected

        async def scanned() -> Any:
            return [record async for record in store.scan(run_id)]

        if hasattr(store, "scan"):
            assert self.do(scanned()) == expected

    @rule(client=st.sampled_from(CLIENTS), prefix=st.sampled_from(["", "plain", "plain/", "$", "ü %"]))
    def runs(self, client: int, prefix: str) -> None:
        async def named(store: Any) -> set[str]:
            found = [run_id async for run_id in store.runs(self.place + prefix)]
            assert len(set(found)) == len(found)
            return set(found)

        assert self.do(named(self.clients[client])) == self.do(named(self.model))

    @rule(client=st.sampled_from(CLIENTS), run=st.sampled_from(RUNS))
    def clear(self, client: int, run: str) -> None:
        self.do(self.model.clear(self.place + run))
        self.do(self.clients[client].clear(self.place + run))
        self.marks.pop(self.place + run, None)
        self.changed.discard(self.place + run)

    # The abilities.

    @rule(
        client=st.sampled_from(CLIENTS),
        known=st.lists(st.tuples(st.sampled_from(RUNS), st.sampled_from(STEPS), st.integers(-1, 3)), max_size=5, unique=True),
    )
    def newer(self, client: int, known: list[tuple[str, str, int]]) -> None:
        if hasattr(self.clients[client], "newer"):
            asked = [*{(run, step): (self.place + run, step, revision) for run, step, revision in known}.values()]
            found = self.do(self.clients[client].newer(asked))
            expected = self.do(self.model.newer(asked))
            assert sorted(each.id for each in found) == sorted(each.id for each in expected)

    @rule(
        client=st.sampled_from(CLIENTS),
        prefix=st.sampled_from(["", "plain", "ü"]),
        names=st.sampled_from([None, ["bill"], ["ship"], ["bill", "ship"]]),
        of=st.sampled_from([None, 1, 2, 3]),
        since=st.sampled_from([None, 0, 1]),
        limit=st.integers(1, 4),
    )
    def flows(self, client: int, prefix: str, names: Any, of: int | None, since: int | None, limit: int) -> None:
        """Page after page, what the index says is what the logs say."""
        store = self.clients[client]
        if not hasattr(store, "flows"):
            return
        options: dict[str, Any] = {"names": names and [self.place + name for name in names], "limit": limit}
        options["states"] = store.flow_states if of is None else sorted(store.flow_states or FLOW_STATES)[:of]
        options["since"] = None if since is None else BEGAN + timedelta(minutes=since)

        async def pages(store: Any) -> list[str]:
            found: list[str] = []
            before = None
            while page := await store.flows(self.place + prefix, before=before, **options):
                found += [each.id for each in page]
                before = page[-1].started_at, page[-1].run_id
                assert len(page) <= limit
            return found

        assert self.do(pages(store)) == self.do(pages(self.model))

    @rule(client=st.sampled_from(CLIENTS))
    def look_at_marks(self, client: int) -> None:
        """A mark is another one whenever something was appended since."""
        store = self.clients[client]
        if hasattr(store, "marks"):
            marks = self.do(store.marks(self.place))
            for run in RUNS:
                run_id = self.place + run
                if self.do(self.model.list(run_id)):
                    assert run_id in marks
                    if run_id in self.changed and run_id in self.marks:
                        assert marks[run_id] != self.marks[run_id]
            self.marks, self.changed = {**marks}, set()

    # Locks.

    @rule(client=st.sampled_from(CLIENTS), run=st.sampled_from(RUNS))
    def take_lock(self, client: int, run: str) -> None:
        run_id = self.place + run

        async def taken() -> Any:
            context = self.clients[client].lock(run_id)
            (await context.__aenter__()).check()
            return context

        if run_id in self.held:
            with pytest.raises(RunBusy):
                self.do(taken())
        else:
            self.held[run_id] = client, self.do(taken())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_lock(self, data: st.DataObject) -> None:
        _, context = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.do(context.__aexit__(None, None, None))

    @rule(client=st.sampled_from(CLIENTS))
    def look_at_holders(self, client: int) -> None:
        run_ids = [self.place + run for run in RUNS]
        assert set(self.do(self.clients[client].holders(run_ids))) == set(self.held)
        for run_id in run_ids:
            assert (self.do(self.clients[client].holder(run_id)) is not None) == (run_id in self.held)

    # Wake-ups.

    def wakes(self) -> bool:
        return hasattr(self.clients[0], "set_wakeup")

    @precondition(wakes)
    @rule(
        target=wakeups,
        client=st.sampled_from(CLIENTS),
        run=st.sampled_from(RUNS),
        flow=st.sampled_from(["bill", "ship"]),
        is_due=st.booleans(),
    )
    def set_wakeup(self, client: int, run: str, flow: str, is_due: bool) -> WakeUp:
        at = BEGAN + timedelta(seconds=next(self.ids)) if is_due else datetime.now(UTC) + HOUR
        wakeup: WakeUp = self.do(self.clients[client].set_wakeup(self.place + run, self.place + flow, at))
        assert (wakeup.run_id, wakeup.flow, wakeup.at) == (self.place + run, self.place + flow, at)
        assert wakeup.token not in self.shown
        self.shown[wakeup.token] = wakeup, set() if is_due else {*CLIENTS}
        return wakeup

    @precondition(wakes)
    @rule(client=st.sampled_from(CLIENTS), flows=st.sets(st.sampled_from(["bill", "ship"])), limit=st.integers(1, 4))
    def take_wakeups(self, client: int, flows: set[str], limit: int) -> None:
        """Those that are due longest, and nobody gets them again who should not."""
        store, names = self.clients[client], {self.place + flow for flow in flows}
        due = [wakeup for wakeup, hidden in self.shown.values() if wakeup.flow in names and client not in hidden]
        expected = sorted(due, key=lambda wakeup: wakeup.at)[:limit]
        taken = self.do(store.take_wakeups(names, limit=limit, visibility_timeout=HOUR))
        assert [(each.token, each.run_id, each.flow, each.at) for each in taken] == [
            (each.token, each.run_id, each.flow, each.at) for each in expected
        ]
        for wakeup in taken:
            self.shown[wakeup.token][1].update(CLIENTS if store.hides_wakeups else {client})

    @precondition(wakes)
    @rule(client=st.sampled_from(CLIENTS), cleared=st.lists(wakeups, max_size=3))
    def clear_wakeups(self, client: int, cleared: list[WakeUp]) -> None:
        self.do(self.clients[client].clear_wakeups(cleared))
        for wakeup in cleared:
            self.shown.pop(wakeup.token, None)

    # The clients.

    @rule(client=st.sampled_from(CLIENTS))
    def reopen(self, client: int) -> None:
        """Close a client, with the locks that it holds given back before, and open another one."""
        for run_id in [run_id for run_id, (holder, _) in self.held.items() if holder == client]:
            self.do(self.held.pop(run_id)[1].__aexit__(None, None, None))
        hides = getattr(self.clients[client], "hides_wakeups", True)
        self.do(self.opened[client].aclose())
        self.clients[client] = self.do(self.opened[client].enter_async_context(open_store(self.url)))
        for wakeup, hidden in self.shown.values():
            if not hides and wakeup.at < datetime.now(UTC):
                hidden.discard(client)


def test_a_store_does_what_a_dictionary_does(url: str) -> None:
    """Appends, reads, clears, locks, indexes and wake-ups of three clients that come and go answer as a `MemoryStore` does."""
    with asyncio.Runner() as loop:
        machine = type("OneStore", (StoreMachine,), {"url": url, "loop": loop})
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=EXAMPLES[url.partition(":")[0]],
                phases=[Phase.generate],  # to shrink a failure takes minutes
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=[*HealthCheck],
            ),
        )
