"""No wake-up is lost: whoever lets a run go on dies, or freezes, between any two operations of the store."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import psutil
import pytest

from durable_core import Flow, Store, control
from durable_core.engine import FLOW, could_go_on, decided
from durable_worker import Worker
from tests.every_store.forking import exit_code
from tests.every_store.stopping import (
    ACTS,
    BROKEN,
    StoppingStore,
    act_until,
    charge,
    family,
    go_as_far_as_it_goes,
    order,
    passing,
    settled,
    start,
    unswept,
    work_until,
)

VISIBILITY = 4.0
LEASE = 4.0
SECONDS = 45.0
"""In which everything has to happen that the tests wait for; far more than it takes."""
pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="Windows neither freezes processes nor kills them by a signal"
)


@pytest.fixture
def place(url: str) -> str:
    """Where locks, if they are leases, end before those who froze go on."""
    return url.replace("lease=10", f"lease={LEASE:g}")


@pytest.fixture
def begin() -> Iterator[Callable[..., Any]]:
    """Start a program of its own; none of them is left at the end."""
    processes: list[Any] = []

    def begin(*arguments: object) -> Any:
        processes.append(start(*arguments))  # type: ignore[arg-type]
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def worker(store: Store, flows: Sequence[Flow[Any, Any]]) -> Worker:
    return Worker(store, flows, poll=0.1, visibility_timeout=VISIBILITY, concurrency=100)


async def until(true: Callable[[], Any], what: object) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + SECONDS
    while not await true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def dead(begin: Callable[..., Any], programs: Sequence[Sequence[object]]) -> None:
    """Run programs until each has killed its process, a few at a time: those that begin all at once are slow."""
    gate = asyncio.Semaphore(4)

    async def one(program: Sequence[object]) -> None:
        async with gate:
            process = begin(*program)
            assert await exit_code(process, SECONDS) == -signal.SIGKILL, program

    await asyncio.gather(*map(one, programs))


async def frozen(begin: Callable[..., Any], programs: Sequence[Sequence[object]]) -> Sequence[Any]:
    """Run programs until each has frozen its process."""
    gate = asyncio.Semaphore(4)

    async def one(program: Sequence[object]) -> Any:
        async with gate:
            process = begin(*program)

            async def is_frozen() -> bool:
                return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

            await until(is_frozen, f"{program} doesn't come to where it freezes")
            return process

    return await asyncio.gather(*map(one, programs))


async def thaw(processes: Sequence[Any]) -> None:
    """Let them go on, and see that they end well."""
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    assert {await exit_code(process, SECONDS) for process in processes} <= {0}


class Point(NamedTuple):
    """Where somebody who acts on a run is stopped."""

    act: str
    at: int

    @property
    def run_id(self) -> str:
        return f"{self.act}-{self.at:02}".replace(" ", "-")

    @property
    def goes_on(self) -> str:
        return self.run_id + ACTS[self.act].fork


async def points_of(store: Store, names: Sequence[str]) -> list[Point]:
    """Bring a run to where it is acted on for each boundary between two operations; those are found by acting undisturbed."""
    found = []
    for name in names:
        act, counting = ACTS[name], StoppingStore(store, Point(name, 0).run_id)
        await before(store, Point(name, 0))
        await act.do(counting, Point(name, 0).run_id)
        found += [Point(name, at) for at in range(1, counting.count + 2)]
    if type(store).__name__ == "S3Store":  # whose operations take ten times as long
        found = found[len(found) % 8 :: 8]
    for point in found:
        await before(store, point)
    BROKEN.clear()
    return found


async def before(store: Store, point: Point) -> None:
    BROKEN.add(point.run_id)
    await ACTS[point.act].before(store, point.run_id)


async def is_right(store: Store, point: Point) -> bool:
    """Tell whether the run has ended as it does after the act."""
    if not decided(await store.get(point.goes_on, FLOW)):
        return False
    run = await control.status(store, point.goes_on)
    return (run.status, run.result) == ACTS[point.act].ends


async def is_in_hand(store: Store, point: Point) -> bool:
    """Tell whether a worker drives the run, or has to: it could go on by what its log says."""
    flow = await store.get(point.goes_on, FLOW)
    return flow is not None and (flow.status == "started" or (await could_go_on(store, [flow], flow.ended_at))[flow.run_id])


async def left_alone(store: Store, points: Sequence[Point]) -> Sequence[Point]:
    """Wait until all runs have gone as far as they can; return those that have not ended as after the act."""
    for point in points:
        await until(lambda point=point: _is_not_in_hand(store, point), f"{point}: nobody looks at a run that could go on")  # type: ignore[misc]
    return [point for point in points if not await is_right(store, point)]


async def _is_not_in_hand(store: Store, point: Point) -> bool:
    return not await is_in_hand(store, point)


async def test_killed_between_any_two_operations(place: str, begin: Callable[..., Any]) -> None:
    """By a wake-up alone the run goes on where it could; else nothing was done, and doing it again lets it go on."""
    async with unswept(place) as store:
        points = await points_of(store, [*ACTS])
        async with worker(store, [order, charge]):
            await dead(begin, [(act_until, place, point.act, point.run_id, point.at, signal.SIGKILL) for point in points])
            rest = await left_alone(store, points)
            assert rest, "before the first operation of an act nothing is done"
            for point in rest:
                await ACTS[point.act].do(store, point.run_id)
            assert not await left_alone(store, rest)


@pytest.mark.parametrize("url", ["sqlite", "postgres", "redis"], indirect=True)
async def test_frozen_between_any_two_operations(place: str, begin: Callable[..., Any]) -> None:
    """For longer than lease and visibility timeout; whoever thaws finds out how the run stands, and it goes on."""
    async with unswept(place) as store:
        points = await points_of(store, ["start", "approve", "retry a step", "cancel", "fork"])
        async with worker(store, [order, charge]):
            stops = [(act_until, place, point.act, point.run_id, point.at, signal.SIGSTOP) for point in points]
            processes = await frozen(begin, stops)
            await asyncio.sleep(VISIBILITY + LEASE)
            await thaw(processes)
            assert not await left_alone(store, points)


class Pass(NamedTuple):
    """A run that a worker drives until it is stopped, and the run that waits for its end."""

    at: int

    @property
    def flow(self) -> str:
        return f"passing-{self.at:02}"

    @property
    def run_id(self) -> str:
        return f"family-{self.at:02}/child"

    @property
    def parent(self) -> str:
        return f"family-{self.at:02}"


async def passes_of(store: Store, *, packed: bool) -> list[Pass]:
    """Ask for a run for each boundary between two operations of a worker that drives it; those are counted by driving one."""

    async def ask(each: Pass) -> None:
        await go_as_far_as_it_goes(family, store, each.parent, child=each.flow)
        if packed:
            await control.send(store, each.run_id, "packed", value="packed")

    zero = Pass(0)
    counting = StoppingStore(store, zero.parent)
    await ask(zero)
    async with Worker(counting, [passing.named(zero.flow)], poll=0.1):
        await settled(store, counting, zero.run_id)
    every = 5 if type(store).__name__ == "S3Store" else 1
    found = [Pass(at) for at in range(1, counting.count + 1, every)]
    for each in found:
        await ask(each)
    return found


async def ends_right(store: Store, passes: Sequence[Pass]) -> None:
    """See that all runs end, and those that wait for them."""

    async def are_over() -> bool:
        return all([decided(await store.get(each.parent, FLOW)) for each in passes])

    await until(are_over, passes)
    for each in passes:
        assert (await control.status(store, each.parent)).result == ["one", "packed"], each


async def test_a_worker_is_killed_between_any_two_operations_of_its_pass(place: str, begin: Callable[..., Any]) -> None:
    """It drives a run, suspends it for a time, ends it, and wakes the run that waits for it: another goes on from anywhere."""
    async with unswept(place) as store:
        passes = await passes_of(store, packed=True)
        await dead(begin, [(work_until, place, each.flow, each.at, signal.SIGKILL, VISIBILITY) for each in passes])
        async with worker(store, [family, *(passing.named(each.flow) for each in passes)]):
            await ends_right(store, passes)


async def test_a_worker_is_frozen_between_any_two_operations_of_its_pass(place: str, begin: Callable[..., Any]) -> None:
    """Another goes on meanwhile, unless the lock is one of the operating system, and held; each run ends once."""
    async with unswept(place) as store:
        passes = await passes_of(store, packed=True)
        stops = [(work_until, place, each.flow, each.at, signal.SIGSTOP, VISIBILITY) for each in passes]
        processes = await frozen(begin, stops)
        async with worker(store, [family, *(passing.named(each.flow) for each in passes)]):
            await asyncio.sleep(VISIBILITY + LEASE)
            held = () if "lease=" in place else await store.holders([each.run_id for each in passes])  # type: ignore[attr-defined]
            await ends_right(store, [each for each in passes if each.run_id not in held])
            await thaw(processes)
            await ends_right(store, passes)


async def test_somebody_decides_while_the_run_suspends(url: str, begin: Callable[..., Any]) -> None:
    """Wherever the worker is then: the run goes on at once, and not after the visibility timeout."""
    place = url.replace("lease=10", "lease=60")
    async with unswept(place) as store:
        passes = await passes_of(store, packed=False)
        stops = [(work_until, place, each.flow, each.at, signal.SIGSTOP, 600.0) for each in passes]
        processes = await frozen(begin, stops)
        for each in passes:
            await control.send(store, each.run_id, "packed", value="packed")
        flows = [family, *(passing.named(each.flow) for each in passes)]
        async with Worker(store, flows, poll=0.1, visibility_timeout=600, concurrency=100):
            await asyncio.sleep(2)  # it takes what `send` has set, and finds most of the runs in the hands of those who froze
            thawed = time.monotonic()
            await thaw(processes)
            await ends_right(store, passes)
            assert time.monotonic() - thawed < (30 if "s3:" in place else 10)
