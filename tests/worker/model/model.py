"""One history: some runs, those who ask for them and act on them, workers that die and freeze, and what must hold at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from durable_core import Flow, Runner, StepRecord, control, flow
from durable_core.engine import is_parked, root_of, waits_of
from durable_core.errors import DurableError, Refused, RunBusy, RunSuspended, StoreError
from durable_worker import Worker, _loop

from .simulation import Fate, Hot, Process, View, VirtualLoop, World, simulate

SWEEP: Final = 30.0
CHAOS: Final = 30.0
_SKEW: Final = 20.0
_MOST: Final = 80
_NAMES: Final[tuple[str, ...]] = ("plain", "timer", "asks", "gets", "both", "boss", "grand", "asker", "shaky", "once", "failing")
_ENDED: Final = ("success", "failure")


@dataclass(frozen=True)
class Case:
    """What a history is made of; the seed says the rest."""

    runs: int = 3
    names: tuple[str, ...] = _NAMES
    workers: int = 2
    sweeps: bool = True
    kills: bool = True
    """Whether workers and actors die and freeze."""
    deadly: float = 0.0
    """How many of those who act die of it, besides what happens to everybody."""
    near: bool = False
    """Whether everybody acts within a second of the run's beginning."""
    poll: float = 1.5
    visible: float = 8.0
    """How long a wake-up is hidden that was taken."""
    concurrency: tuple[int, ...] = (1, 3, 20)
    errors: float = 0.004
    skew: float = _SKEW
    again: float = 0.2
    """How many of those who ask for a run do so again."""
    cancels: float = 0.15
    """How many of the runs somebody cancels."""
    os_locks: bool | None = None
    """None: the seed says it."""
    hides: bool = True
    offers_wakeups: bool = True
    latency: float = 0.02
    slow: float = 0.02
    prompt: float | None = None
    """Within how many seconds a run goes on that could."""


class History:
    """One run of the model."""

    def __init__(self, loop: VirtualLoop, seed: int, case: Case) -> None:
        self.random = random = Random(seed)
        self.case = case
        os_locks = random.random() < 0.5 if case.os_locks is None else case.os_locks
        self.world = World(
            loop,
            random,
            latency=case.latency,
            slow=case.slow,
            errors=case.errors,
            os_locks=os_locks,
            hides=case.hides,
            offers_wakeups=case.offers_wakeups,
        )
        self.flows = self._flows()
        self.crashes: dict[str, int] = {}
        self.broken: set[str] = set()
        self.excused: set[str] = set()
        """Runs on which somebody acted before they were there, and died: no wake-up was owed to them."""
        self._workers = 0
        self._actors = 0

    # The flows, whose steps are all asynchronous.

    def _flows(self) -> dict[str, Flow[Any, Any]]:
        effect = self.world.effect
        wait = self.random.choice([0.0, 0.0, 1.0, 5.0])
        random = self.random

        @flow
        async def plain(runner: Runner) -> int:
            for number in range(2):
                await runner.step(f"s{number}", effect, random.choice([0, 0, 0.5, 3, 12]), returns=None)
            return 1

        @flow
        async def timer(runner: Runner) -> None:
            await runner.step("before", effect, returns=None)
            await runner.sleep("nap", 9)
            await runner.step("after", effect, returns=None)

        @flow
        async def asks(runner: Runner) -> None:
            await runner.approval("ok", {"amount": 90}, timeout=30, on_timeout="reject")
            await runner.step("after", effect, returns=None)

        @flow
        async def gets(runner: Runner) -> Any:
            got = await runner.event("go")
            await runner.step("after", effect, returns=None)
            return got

        @flow
        async def both(runner: Runner) -> None:
            await asyncio.gather(runner.event("go"), runner.sleep("nap", 12), runner.step("s", effect, 1, returns=None))
            await runner.step("after", effect, returns=None)

        @flow
        async def boss(runner: Runner) -> None:
            await runner.flow("kid", self.flows["gets"])
            await runner.step("after", effect, returns=None)

        @flow
        async def grand(runner: Runner) -> None:
            await asyncio.gather(runner.flow("kid", self.flows["boss"]), runner.flow("old", self.flows["timer"]))
            await runner.step("after", effect, returns=None)

        @flow
        async def asker(runner: Runner) -> None:
            child = await runner.flow("kid", self.flows["shaky"], wait=False)
            await runner.step("between", effect, returns=None)
            await runner.result("end", child)
            await runner.step("after", effect, returns=None)

        @flow
        async def shaky(runner: Runner) -> int:
            await runner.step("before", effect, returns=None)
            if self.crashes.setdefault(runner.run_id, random.choice([0, 1, 2])):
                self.crashes[runner.run_id] -= 1
                raise ZeroDivisionError(f"{self.crashes[runner.run_id]} more")
            await runner.step("after", effect, returns=None)
            return 2

        @flow
        async def once(runner: Runner) -> None:
            await runner.step("once", effect, 1, at_most_once=True, returns=None)
            await runner.step("after", effect, returns=None)

        @flow
        async def failing(runner: Runner) -> None:
            await runner.flow("kid", self.flows["fragile"])
            await runner.step("after", effect, returns=None)

        @flow
        async def torn(runner: Runner) -> None:
            await asyncio.gather(runner.flow("kid", self.flows["gets"]), runner.flow("bad", self.flows["fragile"]))

        @flow
        async def fragile(runner: Runner) -> None:
            await runner.step("may-fail", self._may_fail, runner.run_id, returns=None)

        made = [plain, timer, asks, gets, both, boss, grand, asker, shaky, once, failing, torn, fragile]
        return {each.name: each.options(wait_limit=wait) for each in made}

    async def _may_fail(self, run_id: str) -> None:
        await self.world.effect()
        if run_id not in self.broken:
            self.broken.add(run_id)
            raise OSError("not yet")

    # Who works and who acts.

    def fate(self, most: int) -> Fate:
        draw = self.random.random()
        if not self.case.kills or draw < 0.35:
            return Fate()
        if draw < 0.65:
            return Fate(kill_at=self.random.randint(1, most))
        if draw < 0.75:
            return Fate(kill_rate=self.random.choice([0.003, 0.02]))
        freeze = self.random.choice([2.0, 7.0, 15.0, 70.0])
        return Fate(freeze_at=self.random.randint(1, most), freeze=freeze)

    def ahead(self) -> float:
        return self.random.choice([0.0, 0.0, self.case.skew, -self.case.skew, self.random.random()])

    async def work(self) -> None:
        """Have a worker, and another one for it when it dies."""
        while True:
            self._workers += 1
            process = self.world.process(f"worker{self._workers}", self.fate(120) if self.world.chaos else Fate(), self.ahead())
            worker = Worker(
                process.store,
                [*self.flows.values()],
                clock=process.clock,
                visibility_timeout=self.case.visible,
                poll=self.case.poll,
                concurrency=self.random.choice(self.case.concurrency),
                max_crashes=1000,
            )
            process.run(worker.__aenter__())
            await process.ended.wait()
            await asyncio.sleep(self.random.random() * 10 if self.world.chaos else 0.1)

    async def act(
        self, run_id: str, at: float, act: Callable[[Process], Coroutine[Any, Any, Any]], *, may_die: bool = True
    ) -> None:
        """Have somebody act on a run in a process of its own, and perhaps die of it."""
        await asyncio.sleep(max(0.0, at - self.world.loop.time()))
        self._actors += 1
        # Before the run is there, no wake-up can be set for it: only the sweep sees what came of an act that is cut off.
        is_there = self.world.newest(run_id) is not None or act.__name__ in ("start", "program")
        if not is_there and not self.case.sweeps:
            may_die = False
        fate = self.fate(16) if may_die and self.world.chaos else Fate()
        if may_die and self.world.chaos and self.random.random() < self.case.deadly:
            fate = Fate(kill_at=self.random.randint(1, 16))
        process = self.world.process(f"{act.__name__}{self._actors}", fate, self.ahead())
        if self.case.sweeps and self.random.random() < 0.2:  # of a version that knows of no wake-ups
            process.store = View(self.world, process, offers_wakeups=False)

        async def tried() -> None:
            for _ in range(3):
                try:
                    await act(process)
                    return
                except Refused as refusal:
                    self.world.tell(f"{process.name} on {run_id}: {type(refusal).__name__}: {str(refusal)[:90]}")
                    return
                except (StoreError, RunBusy):  # again, as people do
                    await asyncio.sleep(1)

        await process.run(tried())

    def plan(self, run_id: str, name: str) -> list[Coroutine[Any, Any, Any]]:
        """Say who acts on a run, and when."""
        random, plan = self.random, list[Coroutine[Any, Any, Any]]()
        began = random.random() * 10

        def later() -> float:
            if self.case.near:
                return began + random.random() - 0.2
            return began + random.choice([-0.5, 0.0, random.random(), random.random() * 12, random.random() * 25])

        async def start(process: Process) -> None:
            await self.flows[name].options(clock=process.clock).start(process.store, run_id, at=delay)

        async def approve(process: Process) -> None:
            await control.approve(process.store, run_id, "ok", by="ann", clock=process.clock)

        async def cancel(process: Process) -> None:
            await control.cancel(process.store, run_id, clock=process.clock)

        async def retry(process: Process) -> None:
            await control.retry(process.store, run_id, clock=process.clock)

        async def send(process: Process) -> None:
            await control.send(process.store, waiter, "go", 7, clock=process.clock)

        async def program(process: Process) -> None:
            try:
                await self.flows[name].options(clock=process.clock).run(process.store, run_id)
            except (RunSuspended, DurableError, ZeroDivisionError, ExceptionGroup) as left:
                if isinstance(left, (StoreError, RunBusy)):
                    raise

        delay = random.choice([None, None, None, 4.0])
        begins = program if self.case.sweeps and self.case.prompt is None and random.random() < 0.25 else start
        plan.append(self.act(run_id, began, begins))
        if random.random() < self.case.again:
            plan.append(self.act(run_id, later(), start))
        waiter = {
            "gets": run_id,
            "both": run_id,
            "boss": f"{run_id}/kid",
            "grand": f"{run_id}/kid/kid",
            "torn": f"{run_id}/kid",
        }.get(name, "")
        if waiter and random.random() < 0.85:
            plan.append(self.act(waiter, later(), send))
            if random.random() < 0.3:
                plan.append(self.act(waiter, later(), send))
        if name == "asks" and random.random() < 0.7:
            plan.append(self.act(run_id, later(), approve))
        if random.random() < self.case.cancels:
            plan.append(self.act(run_id, later() - random.choice([0, 0, 0.5]), cancel))
        if name in ("once", "failing", "torn", "shaky", "asker"):
            for _ in range(random.choice([0, 1, 2])):
                plan.append(self.act(run_id, began + 5 + random.random() * 25, retry))
        return plan

    # The whole of it.

    async def go(self) -> None:
        """Let it happen, and see what must hold. What does not is in `world.wrong`."""
        world, case = self.world, self.case
        names = [self.random.choice(case.names) for _ in range(case.runs)]
        for number, name in enumerate(names):
            for each in self.plan(f"{name}-{number}", name):
                world.start(each)
        for _ in range(case.workers):
            world.start(self.work())
        world.start(self.watch_takes())
        if case.prompt is not None:
            world.start(self.watch(case.prompt))
        await asyncio.sleep(CHAOS)
        world.chaos = False
        world.tell("from here on nobody dies")
        for process in world.processes:
            process.thaw()
        # Longer than the net of a minute, and whatever a frozen or dead worker had hidden.
        for _ in range(60):
            await asyncio.sleep(5)
            if not self.unsettled() and not self.left_over():
                break
        else:
            world.wrong += [f"lost: {each}" for each in self.unsettled()]
            world.wrong += [f"left: {each}" for each in self.left_over()]
        calls, since = sum(world.calls.values()), world.loop.time()
        await asyncio.sleep(5)
        rate = (sum(world.calls.values()) - calls) / (world.loop.time() - since)
        if rate > 40 * case.workers:
            world.wrong.append(f"hot: {rate:g} calls a second when all is done")
        await world.end()

    async def watch_takes(self) -> None:
        """See that no worker takes wake-ups without end."""
        while True:
            before = self.world.calls["take"]
            await asyncio.sleep(1)
            if (taken := self.world.calls["take"] - before) > _MOST:
                self.world.wrong.append(f"hot: a worker looked {taken} times for wake-ups within a second")
                return

    async def watch(self, within: float) -> None:
        """See that each run goes on soon once it can."""
        since: dict[str, tuple[str, float]] = {}
        while self.world.chaos:
            await asyncio.sleep(0.1)
            stuck = {flow.run_id: (flow.id, why) for flow in self.world.flows() if (why := self.could_go_on(flow)) is not None}
            for run_id, (entry, why) in stuck.items():
                known = since.get(run_id)
                if known is None or known[0] != entry:
                    since[run_id] = entry, self.world.loop.time()
                elif self.world.loop.time() - known[1] > within:
                    self.world.wrong.append(f"late: {run_id} {why} for {within:g} s")
                    return
            for run_id in [each for each in since if each not in stuck]:
                del since[run_id]

    def could_go_on(self, flow: StepRecord) -> str | None:
        """Say why a run that nobody drives could go on; None where it could not. It shares no code with what is tried."""
        world, now = self.world, self.world.clock.now()
        held = world.locks.get(flow.run_id)
        if flow.status in _ENDED or (held is not None and held.holds()):
            return None
        if (root := root_of(flow)) is not None:
            over = world.newest(root[0])
            if over is not None and over.status not in _ENDED:
                return None  # that one drives it
        if flow.status == "started":
            return "is interrupted"
        if flow.until is not None and flow.until <= now:
            return f"was due at {flow.until:%M:%S}"
        if flow.status == "reopened":
            return None if flow.until is not None else "was reopened"
        if flow.notes.get("cancelled") is None and world.newest(flow.run_id, "$cancel") is not None:
            return "was cancelled"
        pairs = waits_of(flow)
        if not pairs and flow.until is None and not is_parked(flow):
            return "waits for its turn"
        for run_id, step_id in pairs:
            step = world.newest(run_id, step_id)
            if step is not None and step.status in _ENDED:
                return f"waits for {run_id} {step_id}, which came"
            if step is not None and step.status == "reopened" and step_id != "$flow":
                return f"waits for {run_id} {step_id}, which was reopened"
        return None

    def unsettled(self) -> list[str]:
        found = []
        for each in self.world.flows():
            why = self.could_go_on(each) or ("is driven for ever" if each.status not in (*_ENDED, "waiting") else None)
            if root_of(each) is not None and self.could_go_on(each) is None:
                continue
            if each.status == "reopened" and each.until is not None:
                why = f"crashed, and is due at {each.until:%M:%S}"
            if is_parked(each) and each.notes["parked"].get("by") != "interruption":
                why = f"is parked by {each.notes['parked']}"
            if why:
                found.append(f"{each.run_id} {why}")
        return found

    def left_over(self) -> list[str]:
        """Name the wake-ups of runs that have ended, or never began."""
        going = {flow.run_id for flow in self.world.flows() if flow.status not in _ENDED}
        left = [each.wakeup for each in self.world.wakeups.values() if each.wakeup.run_id not in going]
        return [f"{wakeup.token} of {wakeup.run_id}" for wakeup in left]


def play(seed: int, case: Case) -> History:
    """Play one history."""
    played: list[History] = []

    async def history(loop: VirtualLoop) -> None:
        played.append(History(loop, seed, case))
        await played[0].go()

    before = _loop._SWEEP_SECONDS, _loop.Loop._sweep
    _loop._SWEEP_SECONDS = SWEEP  # type: ignore[misc]
    if not case.sweeps:
        _loop.Loop._sweep = _no_sweep  # type: ignore[method-assign]
    try:
        simulate(history)
    except Hot as error:
        played[0].world.wrong.append(f"hot: {error}")
    finally:
        _loop._SWEEP_SECONDS, _loop.Loop._sweep = before  # type: ignore[misc,method-assign]
    return played[0]


async def _no_sweep(loop: Any) -> None:
    loop._next_sweep = float("inf")
