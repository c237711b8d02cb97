"""Random programs, written once and run with both faces: their logs are equal but for ids and times."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import durable_core
from durable_core import MemoryStore, RunCancelled, RunSuspended, SomeFailed, StepDrift, StepFailed, StepRecord
from durable_core import control as async_control
from durable_core.sync import Runner, control, flow


class Does(msgspec.Struct, frozen=True):
    """What a program does: steps, waits and more, each under an id of its own."""

    kind: str
    id: str
    size: int
    parts: tuple[Does, ...] = ()


KINDS = (
    "step",
    "async",
    "failure",
    "retried",
    "sleep",
    "sent",
    "never",
    "publish",
    "map",
    "until",
    "once",
    "scope",
    "first",
    "child",
)
INNER = ("step", "failure", "sent", "map", "async")


@st.composite
def programs(draw: st.DrawFn, depth: int = 1, prefix: str = "s", kinds: tuple[str, ...] = KINDS) -> tuple[Does, ...]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        kind, name = draw(st.sampled_from(kinds)), f"{prefix}{number}"
        inner = kind in ("scope", "child") and depth
        parts = draw(programs(depth - 1, f"{name}-", INNER)) if inner else ()
        found.append(Does(kind, name, draw(st.integers(0, 3)), parts))
    return tuple(found)


def value(name: str, size: int) -> list[str]:
    return [name] * size


def fail(name: str) -> None:
    raise ConnectionError(name)


def item(number: int) -> float:
    return 6 / number


async def later(name: str) -> str:
    await asyncio.sleep(0)
    return name


class Tries:
    """Fails the first time, or is not ready yet."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def retried(self, name: str) -> str:
        if name not in self.seen:
            self.seen.add(name)
            raise ConnectionError(name)
        return name

    def ready(self, name: str) -> str | None:
        known = name in self.seen
        self.seen.add(name)
        return name if known else None


def ask(runner: Any, does: Does, tries: Tries) -> Any:
    """Return what a runner of either face makes of it: a value, or something to await."""
    if does.kind in ("step", "scope", "child"):
        return runner.step(does.id, value, does.id, does.size)
    if does.kind == "async":
        return runner.step(does.id, later, does.id)
    if does.kind == "failure":
        return runner.step(does.id, fail, does.id, name="fails", max_attempts=does.size + 1)
    if does.kind == "retried":
        return runner.step(does.id, tries.retried, does.id, max_attempts=2, retry_delay=0.001)
    if does.kind == "once":
        return runner.step(does.id, value, does.id, does.size, at_most_once=True)
    if does.kind == "sleep":
        return runner.sleep(does.id, 0)
    if does.kind in ("sent", "never"):
        return runner.event(does.id, timeout=3600)
    if does.kind == "publish":
        return runner.publish(does.id, {"done": does.size})
    if does.kind == "map":
        return runner.map(does.id, item, [*range(does.size)], key=str, limit=1, tolerate=does.size % 2)
    assert does.kind == "until"
    return runner.until(does.id, tries.ready, does.id, every=1e-7)  # due at once: less than a clock tells


FAILURES = (StepFailed, SomeFailed)


def do(runner: Runner, program: tuple[Does, ...], tries: Tries) -> None:
    for does in program:
        try:
            if does.kind == "scope":
                do(runner.scope(does.id), does.parts, tries)
            elif does.kind == "child":
                runner.flow(does.id, blocking_child, program=does.parts)
            elif does.kind == "first":
                runner.first(
                    does.id,
                    waits=lambda does=does: runner.event(f"{does.id}-never"),  # type: ignore[misc]
                    wins=lambda does=does: runner.step(f"{does.id}-wins", value, does.id, does.size),  # type: ignore[misc]
                )
            else:
                ask(runner, does, tries)
        except FAILURES:
            pass


async def do_async(runner: durable_core.Runner, program: tuple[Does, ...], tries: Tries) -> None:
    for does in program:
        try:
            if does.kind == "scope":
                await do_async(runner.scope(does.id), does.parts, tries)
            elif does.kind == "child":
                await runner.flow(does.id, async_child, program=does.parts)
            elif does.kind == "first":
                await runner.first(
                    does.id,
                    waits=lambda does=does: runner.event(f"{does.id}-never"),  # type: ignore[misc]
                    wins=lambda does=does: runner.step(f"{does.id}-wins", value, does.id, does.size),  # type: ignore[misc]
                )
            else:
                await ask(runner, does, tries)
        except FAILURES:
            pass


@flow(name="child")
def blocking_child(runner: Runner, program: tuple[Does, ...]) -> int:
    do(runner, program, Tries())
    return len(program)


@durable_core.flow(name="child")
async def async_child(runner: durable_core.Runner, program: tuple[Does, ...]) -> int:
    await do_async(runner, program, Tries())
    return len(program)


def events(program: tuple[Does, ...]) -> list[str]:
    return [does.id for does in program if does.kind == "sent"]


ENDS = (RunSuspended, RunCancelled, StepFailed)


def blocking(store: MemoryStore, program: tuple[Does, ...], cancel: bool) -> list[str]:
    tries, ends = Tries(), []

    @flow(name="program", wait_limit=0)
    def main(runner: Runner) -> None:
        do(runner, program, tries)

    for step_id in events(program):
        control.send(store, "run", step_id, step_id)
    for life in range(3):
        if cancel and life == 1:
            try:
                control.cancel(store, "run", reason="enough")
            except durable_core.Refused as refused:
                ends.append(type(refused).__name__)
        try:
            main.run(store, "run")
        except ENDS as end:
            ends.append(type(end).__name__)
    return ends


async def asynchronous(store: MemoryStore, program: tuple[Does, ...], cancel: bool) -> list[str]:
    tries, ends = Tries(), []

    @durable_core.flow(name="program", wait_limit=0)
    async def main(runner: durable_core.Runner) -> None:
        await do_async(runner, program, tries)

    for step_id in events(program):
        await async_control.send(store, "run", step_id, step_id)
    for life in range(3):
        if cancel and life == 1:
            try:
                await async_control.cancel(store, "run", reason="enough")
            except durable_core.Refused as refused:
                ends.append(type(refused).__name__)
        try:
            await main.run(store, "run")
        except ENDS as end:
            ends.append(type(end).__name__)
    return ends


def log_of(store: MemoryStore) -> Mapping[str, list[Any]]:
    """Return the log of each run, in order, without what no two runs have in common."""

    async def read() -> dict[str, list[Any]]:
        return {run_id: [*map(plain, await store.list(run_id))] async for run_id in store.runs()}

    return asyncio.run(read())


def plain(record: StepRecord) -> Any:
    error = None if record.error is None else (record.error.type, re.sub(r" at 2[-:+.T\d]+", "", record.error.message))
    note = {name: content for name, content in (record.notes or {}).items() if name not in ("cancelled", "deadline")}
    fields: list[Callable[[StepRecord], Any]] = [
        *(lambda record, name=name: getattr(record, name) for name in ("step_id", "revision", "status", "kind", "name")),
        *(lambda record, name=name: getattr(record, name) for name in ("result", "attempt", "fingerprint")),
    ]
    return [*(field(record) for field in fields), error, note, record.until is None]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.booleans())
def test_a_program_leaves_the_same_log(program: tuple[Does, ...], cancel: bool) -> None:
    """Three lives of a program, maybe cancelled after the first, raise and record the same with both faces."""
    mine, theirs = MemoryStore(), MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepDrift)
        assert blocking(mine, program, cancel) == asyncio.run(asynchronous(theirs, program, cancel))
    assert log_of(mine) == log_of(theirs)
