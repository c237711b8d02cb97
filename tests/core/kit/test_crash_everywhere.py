"""A flow whose process is killed at every point: what is right passes, and each classic mistake is found and named."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from durable_core import (
    DurableError,
    MemoryStore,
    Recovered,
    RunCancelled,
    Runner,
    StepFailed,
    Store,
    StoreError,
    control,
    current_step,
    flow,
    sync,
)
from durable_core import open_store as open_by_url
from durable_core.record import StepRecord
from durable_core.testing import CrashReport, NotCrashSafe, crash_everywhere
from durable_sqlite import SqliteStore

T = TypeVar("T")

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"), pytest.mark.timeout(600)]


class World:
    """A store, and a ledger for each run."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.url = f"sqlite:{place / 'runs.db'}"

    def do(self, run_id: str, effect: T) -> T:
        with (self.place / run_id).open("a", encoding="utf-8") as ledger:
            ledger.write(f"{effect}\n")
        return effect

    def effects(self, run_id: str) -> Sequence[str]:
        ledger = self.place / run_id
        return ledger.read_text(encoding="utf-8").split() if ledger.exists() else []

    def crash(self, body: Callable[[Runner], Awaitable[Any]], **options: Any) -> CrashReport:
        """Crash a flow of this body everywhere."""

        @flow(name="tried")
        async def tried(runner: Runner) -> Any:
            return await body(runner)

        return crash_everywhere(tried, open_store=self.url, effects=self.effects, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def say_yes(store: Store, wait: StepRecord) -> None:
    """Decide whatever somebody has to."""
    if wait.kind == "approval":
        await control.approve(store, wait.run_id, wait.step_id, by="ann")
    elif wait.kind == "event":
        await control.send(store, wait.run_id, wait.step_id, "in full")


class TestRightFlows:
    def test_every_append_and_every_step(self, world: World) -> None:
        """Before and after each append, as each function begins, at the lock: a step in flight begins again, and no other."""

        async def body(runner: Runner) -> str:
            for name in ("pack", "ship"):
                await runner.step(name, world.do, runner.run_id, name)
            return runner.run_id

        report = world.crash(body)
        appends = ["'$flow' (started)", "'pack' (success)", "'ship' (success)", "'$flow' (success)"]
        lock = [f"{when} the lock is {what}" for what in ("taken", "given back") for when in ("before", "after")]
        killed = {point.place.removesuffix(", resumed after another run") for point in report.points if point.killed}
        assert killed == {
            *(f"{when} append of {append}" for append in appends for when in ("before", "after")),
            *(f"as '{name}' begins" for name in ("pack", "ship")),
            *lock,
        }
        again = {point.place: [*point.again] for point in report.points if point.again}
        assert again == {
            place: [repr(name)]
            for name in ("pack", "ship")
            for place in (f"as '{name}' begins", f"before append of '{name}' (success)")
        }
        assert (len(report.points), report.kills, report.different) == (len(killed) + 2, len(killed), [])
        assert {point.outcome for point in report.points} == {"succeeded"}
        text = str(report).splitlines()
        assert re.fullmatch(r"flow 'tried': 16 runs, 14 of them killed, all came out as undisturbed, in [\d.]+ s", text[0])
        assert re.fullmatch(
            r"as 'pack' begins +succeeded +'pack' +yes", text[3 + [p.place for p in report.points].index("as 'pack' begins")]
        )

    def test_waits_children_and_siblings(self, world: World) -> None:
        """An approval is decided, days pass in no time, and children and steps side by side are killed as well."""

        @flow
        async def bill(runner: Runner, place: str, amount: int) -> int:
            await runner.sleep("cool-off", timedelta(days=30))
            await runner.step("charge", world.do, place, "charge")
            return amount

        async def body(runner: Runner) -> str:
            steps = (runner.step(name, world.do, runner.run_id, name) for name in ("pack", "weigh"))
            await asyncio.gather(*steps)
            decision = await runner.approval("approve", {"amount": 90}, timeout=timedelta(days=3))
            amount = await runner.flow("bill", bill, place=runner.run_id, amount=90)
            return f"{decision.by} {amount}"

        report = world.crash(body, decide=say_yes)
        places = {point.place for point in report.points}
        assert "as 'charge' of child 'bill' begins, in visit 3" in places
        assert {"before a wake-up is set", "after a wake-up is set, in visit 2"} <= places
        assert report.kills == len(report.points) - 2

    def test_a_timeout_passes(self, world: World) -> None:
        """Where `decide` leaves a wait, its deadline comes."""

        async def body(runner: Runner) -> str:
            decision = await runner.approval("approve", timeout=timedelta(days=3), on_timeout="reject")
            return str(decision.by)

        async def leave(store: Store, wait: StepRecord) -> None:
            assert (wait.kind, wait.step_id) == ("approval", "approve")

        assert world.crash(body, decide=leave).kills

    def test_at_most_once(self, world: World) -> None:
        """With `recover` a step goes on by itself; else `decide` mends it, which is asked for a step then."""

        def charge(place: str) -> None:
            world.do(place, "charge")

        async def recovers(runner: Runner) -> None:
            async def look() -> Recovered[None] | None:
                return Recovered(None) if world.effects(runner.run_id) else None

            await runner.step("charge", charge, runner.run_id, at_most_once=True, recover=look)

        async def interrupted(runner: Runner) -> None:
            await runner.step("charge", charge, runner.run_id, at_most_once=True)

        async def mend(store: Store, wait: StepRecord) -> None:
            assert (wait.kind, wait.status) == ("step", "started")
            if world.effects(wait.run_id):
                await control.resolve(store, wait.run_id, wait.step_id, None, reason="it is in the ledger")
            else:
                await control.retry(store, wait.run_id, wait.step_id)

        world.crash(recovers)
        world.crash(interrupted, decide=mend)
        with pytest.raises(NotCrashSafe, match="StepInterrupted"):
            world.crash(interrupted)

    def test_failures_and_undoing(self, world: World) -> None:
        """A flow that ends failed, after it undid something, and one that is cancelled, are compared as any other."""

        def decline() -> None:
            raise PermissionError("declined")

        async def failing(runner: Runner) -> None:
            await runner.step("book", world.do, runner.run_id, "book")
            try:
                await runner.step("charge", decline)
            except StepFailed:
                await runner.step("undo", world.do, runner.run_id, "undo")
                raise

        async def cancelled(runner: Runner) -> None:
            await runner.step("book", world.do, runner.run_id, "book")
            try:
                await runner.event("confirmed")
            except RunCancelled:
                await runner.step("undo", world.do, runner.run_id, "undo", when_cancelled=True)
                raise

        async def cancel(store: Store, wait: StepRecord) -> None:
            await control.cancel(store, wait.run_id)

        world.crash(failing, ends="failed")
        world.crash(cancelled, ends="cancelled", decide=cancel)
        with pytest.raises(DurableError, match=r"has to end as 'succeeded' where nobody disturbs it: it is 'failed': .*declined"):
            world.crash(failing)

    def test_attempts(self, world: World) -> None:
        """Retries with short delays, which are not recorded, and with long ones, which are."""

        def flaky(place: str, effect: str) -> str:
            if current_step().attempt < 2:
                raise OSError("no")
            return world.do(place, effect)

        async def body(runner: Runner) -> None:
            await runner.step("short", flaky, runner.run_id, "short", max_attempts=2)
            await runner.step("long", flaky, runner.run_id, "long", max_attempts=2, retry_delay=3600)

        assert world.crash(body).kills

    def test_values_that_differ_in_each_run(self, world: World) -> None:
        """What a step draws may be another in each run, and so may all that follows from it."""

        async def body(runner: Runner) -> str:
            token = await runner.step("draw", lambda: uuid4().hex)
            return await runner.step("use", str.upper, token)

        assert world.crash(body).kills

    def test_a_transaction(self, world: World) -> None:
        """What is written with its record happens once."""

        def debit(db: Any) -> None:
            db.execute("create table if not exists debits (run text)")
            db.execute("insert into debits values (?)", (current_step().run_id,))

        async def body(runner: Runner) -> None:
            await runner.transaction("debit", debit)

        report = world.crash(body)
        assert {"before a transaction", "after a transaction"} < {point.place for point in report.points}

    def test_a_blocking_flow(self, world: World) -> None:
        """A flow without asyncio is taken as it is."""

        @sync.flow
        def pack(runner: sync.Runner, place: str) -> str:
            return runner.step("pack", world.do, place, "pack")

        report = crash_everywhere(pack, open_store=world.url, input=lambda run_id: {"place": run_id}, effects=world.effects)
        assert "as 'pack' begins" in {point.place for point in report.points if point.killed}

    def test_processes_that_the_flow_leaves_behind(self, world: World) -> None:
        """They keep nobody waiting, and end with the test."""
        pids = world.place / "pids"

        async def body(runner: Runner) -> None:
            if (pid := os.fork()) == 0:
                time.sleep(300)
                os._exit(0)
            with pids.open("a", encoding="utf-8") as file:
                file.write(f"{pid}\n")
            await runner.step("pack", world.do, runner.run_id, "pack")

        report = world.crash(body, timeout=60)
        assert report.kills
        assert report.seconds < 60
        left = {int(pid) for pid in pids.read_text(encoding="utf-8").split()}
        deadline = time.monotonic() + 30
        while left := {pid for pid in left if is_there(pid)}:  # whoever adopted them may take a moment to take note of their end
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_twenty_steps(self, world: World) -> None:
        """Some 70 kills take seconds, since processes are forked from one that has imported everything."""

        async def body(runner: Runner) -> None:
            for number in range(20):
                await runner.step(f"step-{number}", world.do, runner.run_id, number)

        report = world.crash(body)
        assert report.kills == 22 * 2 + 20 + 4


class TestWrongFlows:
    def test_an_effect_outside_of_a_step(self, world: World) -> None:
        """It happens again on each replay."""

        async def body(runner: Runner) -> None:
            await runner.step("charge", world.do, runner.run_id, "charge")
            world.do(runner.run_id, "mail")
            await runner.step("ship", world.do, runner.run_id, "ship")

        with pytest.raises(NotCrashSafe, match=r"effect 'mail' happened 2 times instead of 1.*outside of a step") as caught:
            world.crash(body)
        report = caught.value.report
        first = report.different[0]
        assert first.place == "after append of 'ship' (success)"
        assert str(caught.value).startswith(f"{first.place} (run {first.run_id!r}): effect 'mail'")

    def test_arguments_that_depend_on_the_clock(self, world: World) -> None:
        """The next process calls the step with others."""

        async def body(runner: Runner) -> None:
            await runner.step("bill", world.do, runner.run_id, time.time_ns())

        with pytest.raises(NotCrashSafe) as caught:
            crash_everywhere(flow(name="bill")(body), open_store=world.url)
        found = {point.place: point.difference or "" for point in caught.value.report.points}
        assert (
            "'bill' was called with other arguments by the process that was killed" in found["before append of 'bill' (success)"]
        )
        assert "StepDrift" in found["after append of 'bill' (success)"]

    def test_a_value_that_depends_on_the_clock(self, world: World) -> None:
        """The flow returns another one, though nothing new happened."""

        async def body(runner: Runner) -> int:
            await runner.step("pack", world.do, runner.run_id, "pack")
            return time.time_ns()

        with pytest.raises(NotCrashSafe, match=r"before append of '\$flow' \(success\), .*the value of '\$flow' was") as caught:
            world.crash(body)
        assert len(caught.value.report.different) == 1

    def test_an_id_that_changes(self, world: World) -> None:
        """Two runs that nobody disturbs have other steps already, and a run that goes on repeats what was done."""

        async def body(runner: Runner) -> None:
            await runner.step(f"charge-{uuid4().hex}", world.do, runner.run_id, "charge")

        with pytest.raises(NotCrashSafe, match=r"not killed, once more .*'charge-\w+' was not recorded, and 'charge-\w+' was"):
            world.crash(body)

    def test_undoing_in_finally(self, world: World) -> None:
        """It also runs where the run is suspended, and nothing failed."""

        async def body(runner: Runner) -> None:
            await runner.step("book", world.do, runner.run_id, "book")
            paid = False
            try:
                await runner.event("confirmed", returns=str)
                await runner.step("charge", world.do, runner.run_id, "charge")
                paid = True
            finally:
                if not paid:
                    world.do(runner.run_id, "give-back")

        with pytest.raises(NotCrashSafe, match=r"not killed, suspended .*effect 'give-back' happened 1 times instead of 0"):
            world.crash(body, decide=say_yes)

    def test_what_a_module_keeps(self, world: World) -> None:
        """A process that has had another run goes on with this one: a counter or a cache of the module's is another there."""
        numbers, tokens = count(1), dict[str, str]()

        async def counts(runner: Runner) -> None:
            await runner.step(f"charge-{next(numbers)}", world.do, runner.run_id, "charge")

        async def caches(runner: Runner) -> str:
            if "token" not in tokens:
                tokens["token"] = await runner.step("draw", world.do, runner.run_id, "token")
            return tokens["token"]

        for body, step_id in ((counts, "charge-1"), (caches, "draw")):
            with pytest.raises(NotCrashSafe, match=f"did not call: '{step_id}'") as caught:
                world.crash(body)
            [point] = caught.value.report.different
            assert point.place == "before append of '$flow' (success), resumed after another run"

    def test_a_lock_that_only_finally_gives_back(self, world: World) -> None:
        """No `finally` runs in a process that is killed."""
        held = world.place / "held"

        async def body(runner: Runner) -> None:
            with held.open("x"):  # a lock of the flow's own
                try:
                    await runner.step("pack", world.do, runner.run_id, "pack")
                finally:
                    held.unlink()

        with pytest.raises(NotCrashSafe, match="FileExistsError") as caught:
            world.crash(body, at_once=1)
        assert caught.value.report.different[0].outcome == "crashed"

    def test_all_points_are_told(self, world: World) -> None:
        """The error names the first point and shows a table of those that differ; the report has all of them."""

        async def body(runner: Runner) -> int:
            await runner.step("pack", world.do, runner.run_id, "pack")
            return time.time_ns()

        with pytest.raises(NotCrashSafe) as caught:
            world.crash(body)
        assert "1 differ" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 5
        assert len(str(caught.value.report).splitlines()) == 3 + len(caught.value.report.points)


def test_a_store_that_forgets(world: World) -> None:
    """A function that begins again, though its outcome was recorded, is found, whoever is at fault."""

    class Forgetful(SqliteStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            return (await super().list(run_id))[:-1]

    @flow
    async def pack(runner: Runner) -> None:
        await runner.step("pack", str)

    with pytest.raises(NotCrashSafe, match="the function of 'pack' began 2 times instead of 1, though") as caught:
        crash_everywhere(pack, open_store=lambda: Forgetful.from_url(world.url))
    assert caught.value.report.different[0].place == "after append of 'pack' (success)"


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _nothing_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("durable_core.testing._everywhere.everywhere.forked", lambda *_: pytest.fail("something ran"))

    @staticmethod
    @flow
    async def fine(runner: Runner, amount: int = 1) -> None:
        await runner.step("charge", str, amount)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"flow": asyncio.sleep}, TypeError, "takes a flow, which @flow makes of a function"),
            ({"input": {"sum": 1}}, TypeError, "input of flow 'fine': got an unexpected keyword argument 'sum'; it takes"),
            ({"input": {"amount": object()}}, TypeError, "input 'amount' of flow 'fine' does not fit its annotation int"),
            ({"open_store": MemoryStore()}, TypeError, "a store's URL or a function that opens the store"),
            ({"open_store": "nowhere:runs"}, StoreError, "nowhere"),
            ({"decide": "yes"}, TypeError, "decide must be a function or None, not 'yes'"),
            ({"ends": "well"}, ValueError, "ends='well': expected 'succeeded', 'failed' or 'cancelled'"),
            ({"at_once": 0}, ValueError, "at_once=0: expected a number of runs, from 1"),
            ({"timeout": -1}, ValueError, "timeout"),
        ],
    )
    def test_arguments(self, given: dict[str, Any], error: type[Exception], message: str) -> None:
        """Each is refused before anything runs."""
        options = {"flow": self.fine, "open_store": "sqlite:nowhere.db", **given}
        with pytest.raises(error, match=re.escape(message)):
            crash_everywhere(options.pop("flow"), **options)

    def test_no_fork(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A system that can't fork is told."""
        monkeypatch.delattr(os, "fork")
        with pytest.raises(DurableError, match="run it on Linux or macOS, or in WSL"):
            crash_everywhere(self.fine, open_store="sqlite:nowhere.db")


class TestUndisturbed:
    """A flow that doesn't come to its end by itself is no test of crashes: the error says why."""

    def test_it_raises(self, world: World) -> None:
        async def body(runner: Runner) -> None:
            raise LookupError("typo")

        with pytest.raises(DurableError, match=r"where nobody disturbs it: it is 'crashed': LookupError: typo"):
            world.crash(body)

    def test_nobody_decides(self, world: World) -> None:
        async def body(runner: Runner) -> None:
            await runner.approval("approve")

        with pytest.raises(DurableError, match=r"it waits for 'approve' of 'crash-\w+-1': give decide="):
            world.crash(body)

    def test_a_store_that_is_gone_with_its_process(self, world: World) -> None:
        async def body(runner: Runner) -> None:
            await runner.step("pack", world.do, runner.run_id, "pack")

        store = MemoryStore()
        with pytest.raises(DurableError, match="a MemoryStore is gone with its process"):
            crash_everywhere(flow(name="pack")(body), open_store=lambda: store)

    def test_what_the_test_itself_gives_raises(self, world: World) -> None:
        async def body(runner: Runner) -> None:
            await runner.step("pack", world.do, runner.run_id, "pack")

        def broken(run_id: str) -> dict[str, Any]:
            raise LookupError(f"no input for {run_id}")

        def fails(run_id: str) -> dict[str, Any]:
            pytest.fail(f"no input for {run_id}")

        for given in (broken, fails):
            with pytest.raises(DurableError, match="could not follow a run of flow 'tried'(?s:.*)no input for crash-"):
                world.crash(body, input=given)

    def test_it_hangs(self, world: World) -> None:
        async def body(runner: Runner) -> None:
            await asyncio.Event().wait()

        with pytest.raises(DurableError, match="its process had not ended after 0.5 s"):
            world.crash(body, timeout=0.5)


async def test_inside_a_running_loop(world: World) -> None:
    """An async test may call it: the processes have loops of their own."""

    async def body(runner: Runner) -> str:
        return await runner.step("pack", world.do, runner.run_id, "pack")

    report = world.crash(body)
    async with open_by_url(world.url) as store:
        statuses = [run.status async for run in control.runs(store)]
    assert statuses.count("succeeded") == report.kills + 3 + 1  # the undisturbed ones, and the one after which another resumed


_SHOWN = """
import sys
from durable_core import Runner, flow
from durable_core.testing import crash_everywhere

@flow(name="a-flow-whose-name-is-longer-than-what-is-left-of-a-line-of-a-terminal-of-80-columns")
async def flow(runner: Runner) -> int:
    return await runner.step("one", lambda: 1)

crash_everywhere(flow, open_store=sys.argv[1])
"""


@pytest.mark.parametrize("columns", [80, 30])
def test_a_terminal_shows_how_far_it_is(world: World, columns: int) -> None:
    """On one line, which is gone at the end, however long the flow's name is."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", _SHOWN, world.url], stdout=theirs, stderr=theirs, stdin=theirs, env=environment, check=False
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal tells that nobody writes to it any more
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert done.returncode == 0, shown
    assert shown.endswith(b"\r")
    first, *others, last = filter(None, shown.decode().split("\r"))
    assert first.startswith("crash_everywhere: 0 of 3 runs")
    assert any(re.match(r"crash_everywhere: 4 of \d+ ru", line) for line in others)
    assert {len(line) for line in (first, *others, last)} == {columns - 1}
    assert not last.strip()


def test_the_undisturbed_processes_are_this_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test has patched is patched in the processes, too."""
    monkeypatch.setattr(sys, "patched", "yes", raising=False)

    async def body(runner: Runner) -> str:
        return await runner.step("look", getattr, sys, "patched", returns=str)

    assert world.crash(body).kills
