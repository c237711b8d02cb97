"""Runs do what the table of their entries says, whatever is done to them in whatever order, and wherever they are killed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from itertools import count
from typing import Any, Final, Literal

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from durable_core import MemoryStore, Refused, Runner, RunSuspended, StepFailed, StepInterrupted, control, flow
from durable_core.testing import FakeClock
from tests.core.conftest import Killed
from tests.every_store.killing import MeetingStore
from tests.model.runs import Part, Refusal, Run

IDS: Final = ("a", "b", "c")
_PARTS: Final = st.tuples(st.sampled_from(["step", "once", "once", "sleep", "approval", "event"]), st.sampled_from([0, 10, 40]))
PROGRAMS: Final = st.lists(_PARTS, min_size=1, max_size=len(IDS))


class RunMachine(RuleBasedStateMachine):
    """Does the same with a run and with the model of one, and compares every chain of entries."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.loop = asyncio.Runner()
        self.names = (f"run-{number}" for number in count())
        self.began = self.clock.now()

        @flow(wait_limit=0, clock=self.clock)
        async def play(runner: Runner, program: list[Part]) -> None:
            for what, step, seconds in program:
                if what in ("step", "once"):
                    await runner.step(step, self.work, step, at_most_once=what == "once", returns=None)
                elif what == "sleep":
                    await runner.sleep(step, seconds)
                elif what == "approval":
                    await runner.approval(step, {}, timeout=seconds or None)
                else:
                    await runner.event(step, timeout=seconds or None)

        self.flow = play

    async def work(self, step: str) -> None:
        self.effects[step] = self.effects.get(step, 0) + 1
        if step in self.model.broken:
            raise OSError("somebody has to mend this")

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    def both(self, act: Coroutine[Any, Any, Any], model: Any, *arguments: Any, **options: Any) -> None:
        """Act on both: either both refuse, or none."""
        try:
            self.do(act)
            is_refused = False
        except Refused as refused:
            is_refused = True
            why = str(refused)
        try:
            model(*arguments, **options)
        except Refusal:
            assert is_refused
        else:
            assert not is_refused, why

    @initialize(parts=PROGRAMS)
    def program(self, parts: list[tuple[Any, int]]) -> None:
        drawn = zip(IDS, parts, strict=False)
        self.parts = [Part(what, step, seconds or (20 if what == "sleep" else 0)) for step, (what, seconds) in drawn]
        self.model = Run(self.parts)
        self.model.now = (self.clock.now() - self.began).total_seconds()
        self.run_id, self.effects = next(self.names), {}

    @precondition(lambda self: self.model.status in ("succeeded", "cancelled"))
    @rule(parts=PROGRAMS)
    def begin_another(self, parts: list[tuple[Any, int]]) -> None:
        self.program(parts)

    def teardown(self) -> None:
        self.loop.close()

    def drive(self, store: Any) -> None:
        async def driven() -> None:
            with suppress(RunSuspended, StepFailed, StepInterrupted, Killed):
                await self.flow.run(store, run_id=self.run_id, program=self.parts)

        self.do(driven())

    def named(self, what: str) -> list[str]:
        return [part.step for part in self.parts if part.what == what]

    def has_begun(self) -> bool:
        return "$flow" in self.model.chains

    # Processes.

    @rule()
    def start(self) -> None:
        self.do(self.flow.start(self.store, self.run_id, program=self.parts))
        self.model.start()

    @rule()
    def run(self) -> None:
        self._run()

    @rule()
    def run_again(self) -> None:
        """The same once more, so that Hypothesis chooses it twice as often."""
        self._run()

    def _run(self) -> None:
        self.drive(self.store)
        self.model.drive()

    @rule(at=st.integers(1, 6), when=st.sampled_from(["before", "after"]))
    def run_and_kill(self, at: int, when: Literal["before", "after"]) -> None:
        """A process drives the run, and dies around one of its appends."""
        self.drive(MeetingStore(self.store, at, when))
        self.model.drive(at, is_recorded=when == "after")

    @rule(seconds=st.sampled_from([5, 15, 60]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model.now += seconds

    @rule(step=st.sampled_from(IDS))
    def break_or_mend(self, step: str) -> None:
        self.model.broken ^= {step}

    # People.

    @precondition(lambda self: self.named("approval"))
    @rule(data=st.data(), value=st.sampled_from(["approve", "approve", "reject", "failure"]), late=st.booleans())
    def decide(self, data: st.DataObject, value: str, late: bool) -> None:
        if late:
            self.pass_time(60)
        step = data.draw(st.sampled_from(self.named("approval")))
        if value == "failure" and step not in self.model.chains:
            return  # it would be taken for an event that comes early
        if value == "failure":
            act = control.send_failure(self.store, self.run_id, step, error="taken back", clock=self.clock)
        else:
            function = control.approve if value == "approve" else control.reject
            act = function(self.store, self.run_id, step, by="ann", clock=self.clock)
        self.both(act, self.model.decide, step, value, is_event=False)

    @precondition(lambda self: self.named("event"))
    @rule(data=st.data(), value=st.sampled_from(["one", "one", "two", "failure"]), late=st.booleans())
    def send(self, data: st.DataObject, value: str, late: bool) -> None:
        if late:
            self.pass_time(60)
        step = data.draw(st.sampled_from(self.named("event")))
        if value == "failure":
            act = control.send_failure(self.store, self.run_id, step, error="lost", clock=self.clock)
        else:
            act = control.send(self.store, self.run_id, step, value, clock=self.clock)
        self.both(act, self.model.decide, step, value, is_event=True)

    @precondition(has_begun)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "retry", "retry_step", "retry_step", "resolve", "resolve", "fork"]))
    def mend(self, data: st.DataObject, how: str) -> None:
        """Cancel the run, or let it go on by one of the ways that there are."""
        store, run_id, clock = self.store, self.run_id, self.clock
        if how == "cancel":
            self.both(control.cancel(store, run_id, clock=clock), self.model.cancel)
        elif how == "retry":
            self.both(control.retry(store, run_id, clock=clock), self.model.retry)
        elif how == "retry_step":
            step = data.draw(st.sampled_from([part.step for part in self.parts]))
            self.both(control.retry(store, run_id, step, clock=clock), self.model.retry_step, step)
        elif how == "resolve" and (called := self.named("step") + self.named("once")):
            step = data.draw(st.sampled_from(called))
            act = control.resolve(store, run_id, step, None, reason="seen", clock=clock)
            self.both(act, self.model.resolve, step)
        elif how == "fork":  # from then on the fork is the run
            step, new, before = (
                data.draw(st.sampled_from([part.step for part in self.parts])),
                next(self.names),
                self.model.chains,
            )
            self.both(control.fork(store, run_id, new, before=step, clock=clock), self.model.fork, step)
            if self.model.chains is not before:
                self.run_id = new

    # What holds after each.

    @invariant()
    def the_entries_are_those_of_the_table(self) -> None:
        chains: dict[str, list[str]] = {}
        for record in self.do(self.store.list(self.run_id)):
            chain = chains.setdefault(record.step_id, [])
            assert record.revision == len(chain)
            chain.append(record.status)
        assert chains == self.model.chains
        assert self.effects == self.model.effects
        if self.has_begun():
            assert self.do(control.status(self.store, self.run_id)).status == self.model.status


def test_runs_are_as_the_table_says() -> None:
    """Started, run, killed at any append, decided, cancelled, retried, resolved and forked, as time passes."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RunMachine,
        settings=settings(
            max_examples=80,
            phases=[Phase.generate],
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[*HealthCheck],
        ),
    )
