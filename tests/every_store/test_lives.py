"""The documented entries of a run, read back from every store, wherever between them its process was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    Flow,
    Recovered,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    Store,
    control,
    current_step,
    flow,
)
from tests.every_store.conftest import Opened
from tests.every_store.killing import Act, Life, Lived, World, chain_of, everywhere

HOUR = 3600.0


def flow_of(world: World, body: Callable[[Runner], Awaitable[Any]], **options: Any) -> Flow[Any, Any]:
    """Make a flow of `body` that is suspended where it waits."""

    @flow(name="life", clock=world.clock, wait_limit=0, **options)
    async def life(runner: Runner) -> None:
        await body(runner)

    return life


def runs(flow: Flow[Any, Any], world: World, *raises: type[BaseException], leaves: str = "") -> Act:
    """Run the flow, which ends, or else leaves by one of these exceptions."""

    async def run(store: Store) -> None:
        with pytest.raises(raises) if raises else contextlib.nullcontext():
            await flow.run(store, run_id=world.run_id)

    return Act(run, leaves)


def passes(world: World, seconds: float) -> Act:
    """Let time pass, which asks nothing of the store."""

    async def pass_(store: Store) -> None:
        world.clock.advance(seconds)

    return Act(pass_)


def acts(act: Callable[..., Awaitable[object]], *arguments: Any, **options: Any) -> Act:
    return Act(lambda store: act(store, *arguments, **options))


def fails_at_first(world: World, times: int = 1) -> Callable[[], str]:
    """Return a function whose first attempts raise, as they are counted in the log."""

    def tries() -> str:
        if current_step().attempt <= times:
            raise OSError("no")
        return world.effects.happen()

    return tries


def plain(world: World) -> Sequence[Act]:
    ends = flow_of(world, lambda runner: runner.step("step", world.effects.happen))
    return [runs(ends, world)]


def plain_failure(world: World) -> Sequence[Act]:
    ends = flow_of(world, lambda runner: runner.step("step", fails_at_first(world, 99)))
    return [runs(ends, world, StepFailed)]


def at_most_once(world: World, tries: int = 1) -> Sequence[Act]:
    """`recover` finds out whether the effect is there."""

    async def look() -> Recovered[str] | None:
        return Recovered("effect") if world.effects["effect"] else None

    fn = fails_at_first(world, tries - 1)
    once = flow_of(world, lambda runner: runner.step("step", fn, at_most_once=True, max_attempts=tries, recover=look))
    return [runs(once, world)]


def at_most_once_twice(world: World) -> Sequence[Act]:
    return at_most_once(world, tries=2)


def long_delay(world: World) -> Sequence[Act]:
    fn = fails_at_first(world)
    delayed = flow_of(world, lambda runner: runner.step("step", fn, max_attempts=2, retry_delay=HOUR))
    return [runs(delayed, world, RunSuspended, leaves="waiting"), passes(world, HOUR), runs(delayed, world)]


def two_long_delays(world: World) -> Sequence[Act]:
    def fails() -> None:
        world.effects.happen()
        raise OSError(f"no {current_step().attempt}")

    delayed = flow_of(world, lambda runner: runner.step("step", fails, max_attempts=3, retry_delay=HOUR))
    suspended = runs(delayed, world, RunSuspended, leaves="waiting")
    return [suspended, passes(world, HOUR), suspended, passes(world, HOUR), runs(delayed, world, StepFailed)]


def reopened(world: World) -> Sequence[Act]:
    mended: list[bool] = []

    def step() -> str:
        if not mended:
            raise OSError("no")
        return world.effects.happen()

    async def mend(store: Store) -> None:
        mended.append(True)
        await control.retry(store, world.run_id, "step", clock=world.clock)

    fails = flow_of(world, lambda runner: runner.step("step", step))
    return [runs(fails, world, StepFailed), Act(mend, "reopened"), runs(fails, world)]


def sleep(world: World) -> Sequence[Act]:
    sleeps = flow_of(world, lambda runner: runner.sleep("step", HOUR))
    return [runs(sleeps, world, RunSuspended, leaves="waiting"), passes(world, HOUR), runs(sleeps, world)]


def approval(world: World, people: Sequence[str] = ("alice",)) -> Sequence[Act]:
    quorum = len(people)
    asks = flow_of(world, lambda runner: runner.approval("step", {"amount": 90}, timeout=HOUR, approvers=people, quorum=quorum))
    votes = [acts(control.approve, world.run_id, "step", by=name, clock=world.clock) for name in people]
    return [runs(asks, world, RunSuspended, leaves="waiting"), *votes, runs(asks, world)]


def two_people(world: World) -> Sequence[Act]:
    return approval(world, ("alice", "bob"))


def deadline(world: World) -> Sequence[Act]:
    asks = flow_of(world, lambda runner: runner.approval("step", timeout=HOUR))
    return [runs(asks, world, RunSuspended, leaves="waiting"), passes(world, HOUR), runs(asks, world, StepFailed)]


def event_sent_early(world: World) -> Sequence[Act]:
    hears = flow_of(world, lambda runner: runner.event("step", returns=int))
    return [acts(control.send, world.run_id, "step", 7, clock=world.clock), runs(hears, world)]


def child(world: World) -> Sequence[Act]:
    bill = flow_of(world, lambda runner: runner.step("step", world.effects.happen))
    order = flow_of(world, lambda runner: runner.flow("child", bill))
    return [runs(order, world)]


def asked_for(world: World) -> Sequence[Act]:
    ends = flow_of(world, lambda runner: runner.step("step", world.effects.happen))
    return [acts(ends.start, world.run_id, timedelta(hours=1)), passes(world, HOUR), runs(ends, world)]


def code_raised(world: World) -> Sequence[Act]:
    typo = [True]

    async def body(runner: Runner) -> None:
        await runner.step("step", world.effects.happen)
        if typo:
            raise KeyError("amuont")

    async def mend(store: Store) -> None:
        typo.clear()

    crashes = flow_of(world, body)
    return [runs(crashes, world, KeyError, leaves="reopened"), Act(mend), runs(crashes, world)]


def asked_for_child(world: World) -> Sequence[Act]:
    """Without waiting for it, which `result` does."""
    bill = flow_of(world, lambda runner: runner.step("step", world.effects.happen))

    async def body(runner: Runner) -> Any:
        return await runner.result("result", await runner.flow("child", bill, wait=False))

    order = flow_of(world, body)

    async def run_child(store: Store) -> None:
        await bill.run(store, run_id=f"{world.run_id}/child")

    return [runs(order, world, RunSuspended, leaves="waiting"), Act(run_child), runs(order, world)]


def parked(world: World) -> Sequence[Act]:
    """By drift, until its code is mended."""
    code = ["crash"]

    async def body(runner: Runner) -> None:
        if code[0] == "drift":
            await runner.sleep("step", HOUR)
        await runner.step("step", world.effects.happen)
        if code[0] == "crash":
            raise KeyError("amuont")

    def mend(how: str) -> Act:
        async def mended(store: Store) -> None:
            code[0] = how

        return Act(mended)

    drifts = flow_of(world, body)
    return [
        runs(drifts, world, KeyError, leaves="reopened"),
        mend("drift"),
        runs(drifts, world, StepDrift, leaves="waiting"),
        mend("fine"),
        runs(drifts, world),
    ]


def parked_and_retried(world: World) -> Sequence[Act]:
    """By hand, of the whole run."""
    *before, again = parked(world)
    return [*before, acts(control.retry, world.run_id, by="alice", clock=world.clock), again]


def mapped(world: World) -> Sequence[Act]:
    fans = flow_of(world, lambda runner: runner.map("step", world.effects.happen, ["a", "b"], key=str, limit=1))
    return [runs(fans, world)]


def cancelled(world: World) -> Sequence[Act]:
    asks = flow_of(world, lambda runner: runner.approval("step"))
    return [
        runs(asks, world, RunSuspended, leaves="waiting"),
        acts(control.cancel, world.run_id, reason="enough", clock=world.clock),
        runs(asks, world, StepFailed),
    ]


def failed_child(world: World) -> Sequence[Act]:
    """A child whose code raised stops its parent by the same error."""
    typo = [True]

    async def body(runner: Runner) -> None:
        if typo:
            raise KeyError("amuont")

    async def mend(store: Store) -> None:
        typo.clear()

    crashes = flow_of(world, body)
    order = flow_of(world, lambda runner: runner.flow("child", crashes))
    return [runs(order, world, KeyError, leaves="reopened"), Act(mend), runs(order, world)]


def raced(world: World) -> Sequence[Act]:
    """The event comes first, and the approval is withdrawn."""

    async def race(runner: Runner) -> str:
        ask, hear = lambda: runner.approval("ask"), lambda: runner.event("step")
        return (await runner.first("race", ask=ask, hear=hear))[0]

    races = flow_of(world, race)
    sent = acts(control.send, world.run_id, "step", 7, clock=world.clock)
    return [runs(races, world, RunSuspended, leaves="waiting"), sent, runs(races, world)]


def published(world: World) -> Sequence[Act]:
    async def tell(runner: Runner) -> None:
        await runner.publish("step", 1)
        await runner.publish("step", 2)

    return [runs(flow_of(world, tell), world)]


FLOW = ("", "$flow")
STEP = ("", "step")
ENDS = ["started 1 {input}", "success 1 {input}"]
WAITS = ["started 1 {input}", "waiting 1 +3600 {input waiting_for}", "started 1 {input}", "success 1 {input}"]
FAILS = ["started 1 {input}", "failure 1 OSError {failed input}"]

Chains = Mapping[tuple[str, str], Sequence[str]]

ROWS: Mapping[Life, Chains] = {
    plain: {STEP: ["success 1"], FLOW: ENDS},
    plain_failure: {STEP: ["failure 1 OSError"], FLOW: FAILS},
    at_most_once: {STEP: ["started 1", "success 1"], FLOW: ENDS},
    at_most_once_twice: {STEP: ["started 1", "started 2 OSError", "success 2"], FLOW: ENDS},
    long_delay: {STEP: ["waiting 1 OSError +3600", "success 2"], FLOW: WAITS},
    reopened: {
        STEP: ["failure 1 OSError", "reopened 1", "success 1"],
        FLOW: [*FAILS, "reopened 1 {input reason}", *ENDS],
    },
    sleep: {STEP: ["waiting 1 +3600", "success 1 +3600"], FLOW: WAITS},
    approval: {
        STEP: ["waiting 1 +3600 {approvers show}", "success 1 +3600 {approvers show votes}"],
        FLOW: WAITS,
    },
    two_people: {
        STEP: [
            "waiting 1 +3600 {approvers quorum show}",
            "waiting 1 +3600 {approvers quorum show votes}",
            "success 1 +3600 {approvers quorum show votes}",
        ],
        FLOW: WAITS,
    },
    deadline: {
        STEP: ["waiting 1 +3600", "failure 1 DeadlinePassed +3600"],
        FLOW: [*WAITS[:-1], "failure 1 DeadlinePassed {failed input}"],
    },
    event_sent_early: {STEP: ["success 1"], FLOW: ENDS},
    child: {
        ("", "child"): ["waiting 1 {flow input run}", "success 1 {flow input run}"],
        FLOW: ENDS,
        ("/child", "$flow"): ["started 1 {input parent root}", "success 1 {input parent root}"],
        ("/child", "step"): ["success 1"],
    },
    asked_for: {
        STEP: ["success 1"],
        FLOW: ["waiting 1 +3600 {asked input}", "started 1 {asked input}", "success 1 {asked input}"],
    },
    code_raised: {STEP: ["success 1"], FLOW: ["started 1 {input}", "reopened 1 KeyError +1 {input}", *ENDS]},
    asked_for_child: {
        ("", "child"): ["success 1 {flow input run}"],
        ("", "result"): ["waiting 1 {run}", "success 1 {run}"],
        FLOW: ["started 1 {input}", "waiting 1 {input waiting_for}", *ENDS],
        ("/child", "$flow"): [
            "waiting 1 {asked input parent}",
            "started 1 {asked input parent}",
            "success 1 {asked input parent}",
        ],
    },
    parked: {
        STEP: ["success 1"],
        FLOW: [
            "started 1 {input}",
            "reopened 1 KeyError +1 {input}",
            "started 1 {input}",
            "waiting 1 {input parked waiting_for}",
            *ENDS,
        ],
    },
    parked_and_retried: {
        FLOW: [
            "started 1 {input}",
            "reopened 1 KeyError +1 {input}",
            "started 1 {input}",
            "waiting 1 {input parked waiting_for}",
            "reopened 1 {by input}",
            *ENDS,
        ],
    },
    mapped: {("", "step/a"): ["success 1"], ("", "step/b"): ["success 1"], STEP: ["success 1"], FLOW: ENDS},
    cancelled: {
        STEP: ["waiting 1"],
        FLOW: [
            "started 1 {input}",
            "waiting 1 {input waiting_for}",
            "reopened 1 {cancelled input}",
            "started 1 {cancelled input}",
            "failure 1 RunCancelled {cancelled input}",
        ],
    },
    raced: {
        STEP: ["waiting 1", "success 1"],
        ("", "ask"): ["waiting 1", "failure 1 Withdrawn"],
        ("", "race"): ["success 1 {begun lost}"],
        FLOW: ["started 1 {input}", "waiting 1 {input waiting_for}", *ENDS],
    },
    published: {STEP: ["success 1", "success 1"], FLOW: ENDS},
    failed_child: {
        ("", "child"): ["waiting 1 {flow input run}", "success 1 {flow input run}"],
        FLOW: ["started 1 {input}", "reopened 1 KeyError +1 {input}", *ENDS],
    },
}


INTERRUPTED: Mapping[tuple[Life, int, str], Sequence[str]] = {
    (at_most_once, 2, "after"): ["started 1", "started 2", "success 2"],
    (at_most_once, 3, "before"): ["started 1", "success 1 {recovered}"],
    (at_most_once_twice, 2, "after"): ["started 1", "started 2", "success 2"],
    (at_most_once_twice, 3, "before"): ["started 1", "started 2", "success 2"],
    (at_most_once_twice, 3, "after"): ["started 1", "started 2 OSError", "started 3", "success 3"],
    (at_most_once_twice, 4, "before"): ["started 1", "started 2 OSError", "success 2 {recovered}"],
}
"""What the step's entries are where the process died between an intent and its outcome, and `recover` is asked."""


def taken_up(lived: Lived, where: tuple[str, str], entries: Sequence[str]) -> list[str]:
    """Return what `entries` are where the process of a run died after it had begun: it is begun once more."""
    found = [*entries]
    if where in lived.interrupted:
        begun = lived.interrupted[where]
        found.insert(begun, found[begun - 1])
    return found


@pytest.mark.parametrize("life", ROWS, ids=lambda life: life.__name__)
async def test_entries_after_a_kill_at_each_boundary(store: Store, opened: Opened, life: Life) -> None:
    """They are the documented ones; a run that was begun and whose process died is begun once more, and nothing else."""
    lives = await everywhere(life, store)
    async with opened() as other:
        for lived in lives:
            for (run, step), entries in ROWS[life].items():
                expected = taken_up(lived, (run, step), entries)
                if step == "step":
                    expected = [*INTERRUPTED.get((life, lived.at, lived.when), expected)]
                found = await other.list(lived.world.run_id + run)
                assert chain_of(found, step, lived.world.began) == expected, (lived.at, lived.when)
            again = lived.may_repeat("step") or lived.may_repeat("step", "/child")
            assert lived.world.effects["effect"] <= 1 + (again and not life.__name__.startswith("at_most_once")), lived.met


async def test_attempts_hours_apart_are_counted_over_kills(store: Store, opened: Opened) -> None:
    """Each attempt is numbered, an hour after the one before, and the errors of all are in the log."""
    lives = await everywhere(two_long_delays, store)
    async with opened() as other:
        for lived in lives:
            entries = [record for record in await other.list(lived.world.run_id) if record.step_id == "step"]
            assert chain_of(entries, "step", lived.world.began) == [
                "waiting 1 OSError +3600",
                "waiting 2 OSError +7200",
                "failure 3 OSError",
            ], (lived.at, lived.when)
            assert [record.error and record.error.message for record in entries] == ["no 1", "no 2", "no 3"]
            assert lived.world.effects["effect"] == 3 + lived.may_repeat("step")
            flow = [*WAITS[:2], "started 1 {input}", "waiting 1 +7200 {input waiting_for}", *FAILS]
            assert await lived.world.chain() == taken_up(lived, FLOW, flow)
