"""Scopes, and what code may ask of the runner that it runs in."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import (
    DurableError,
    MemoryStore,
    NestedStep,
    Runner,
    RunSuspended,
    StepReused,
    control,
    current_runner,
    flow,
    in_step,
)


@flow
async def child(runner: Runner) -> str:
    return await runner.step("inner", lambda: runner.run_id)


async def test_every_verb_is_prefixed(store: MemoryStore) -> None:
    """The ids of all verbs stand below the scope's name, `recorded` too; the runner's own ids are as they were."""

    @flow
    async def whole(runner: Runner) -> None:
        scope = runner.scope("triage")
        await scope.step("step", lambda: 1)
        await scope.sleep("sleep", 0)
        await control.send(store, "run", "triage/event", 2)
        assert await scope.event("event") == 2
        await scope.map("map", str, [7])
        await scope.publish("progress", 1)
        await scope.first("race", one=lambda: scope.step("raced", lambda: 1))
        assert await scope.flow("child", child) == "run/triage/child"
        await runner.step("step", lambda: 2)
        recorded = scope.recorded("step")
        assert recorded is not None
        assert recorded.value() == 1
        assert runner.recorded("triage/step") == recorded
        recorded = runner.recorded("step")
        assert recorded is not None
        assert recorded.value() == 2

    for _ in range(2):
        await whole.run(store, "run")
    ids = dict.fromkeys(record.step_id for record in await store.list("run") if record.step_id != "$flow")
    inside = ["step", "sleep", "event", "map/0", "map", "progress", "raced", "race", "child"]
    assert [*ids] == [*(f"triage/{name}" for name in inside), "step"]


async def test_an_approval_in_a_scope(store: MemoryStore) -> None:
    """A person decides it by its whole id."""
    with pytest.raises(RunSuspended):
        async with Runner(store, "run", wait_limit=0) as runner:
            await runner.scope("triage").approval("boss", "buy?")
    await control.approve(store, "run", "triage/boss", by="alice")
    async with Runner(store, "run", wait_limit=0) as runner:
        assert await runner.scope("triage").approval("boss", "buy?")


async def test_scopes_nest_and_a_part_may_run_twice(store: MemoryStore) -> None:
    """The same code in two scopes has ids of its own in each."""
    calls: list[str] = []

    async def part(runner: Runner, name: str) -> str:
        return await runner.scope("part").step("ask", lambda: calls.append(name) or name, returns=str)  # type: ignore[func-returns-value]

    for _ in range(2):
        async with Runner(store, "run") as runner:
            assert await part(runner.scope("a"), "a") == "a"
            assert await part(runner.scope("b"), "b") == "b"
    assert calls == ["a", "b"]
    assert [record.step_id for record in await store.list("run")] == ["a/part/ask", "b/part/ask"]
    assert repr(runner.scope("a").scope("part")) == f"Runner({store!r}, run_id='run', scope='a/part')"


async def test_a_scope_is_the_same_runner(store: MemoryStore) -> None:
    """It shares ids, lock and log: the same id is the same step, and a step in a scope can't start another."""
    async with Runner(store, "run") as runner:
        scope = runner.scope("triage")
        await scope.step("ask", lambda: 1)
        with pytest.raises(StepReused):
            await runner.step("triage/ask", lambda: 2)
        with pytest.raises(NestedStep):
            await scope.step("outer", lambda: runner.step("inner", lambda: 1))
        assert [record.step_id for record in await scope.history()] == ["triage/ask"]
        await scope.reset()
        assert runner.recorded("triage/ask") is None


@pytest.mark.parametrize("name", ["", "a/b", "$a", "x" * 513, "a\n"])
async def test_names(store: MemoryStore, name: str) -> None:
    """A scope's name holds no slash and doesn't begin with a dollar sign."""
    with pytest.raises(ValueError, match="scope"):
        Runner(store, "run").scope(name)


async def test_ids_in_a_scope_are_checked(store: MemoryStore) -> None:
    """A name of the library's own is refused inside a scope as well, and so is what is no text."""
    scope = Runner(store, "run").scope("triage")
    with pytest.raises(ValueError, match="reserved for the library"):
        await scope.step("$flow", lambda: 1)
    with pytest.raises(ValueError, match="bytes"):
        await scope.step("x" * 510, lambda: 1)
    wrong: str = 7  # type: ignore[assignment]
    with pytest.raises(TypeError, match="must be a str"):
        await scope.step(wrong, lambda: 1)
    assert await store.list("run") == ()


async def test_recorded_asks_nobody(store: MemoryStore) -> None:
    """It is what the runner knows: nothing before the log was read, and the newest entry then."""
    await Runner(store, "run").step("ask", lambda: 1)
    runner = Runner(store, "run")
    assert runner.recorded("ask") is None
    async with runner:
        record = runner.recorded("ask")
        assert record is not None
        assert record.value() == 1
        assert runner.recorded("other") is None
        with pytest.raises(ValueError, match="step_id"):
            runner.recorded("")


class TestCurrentRunner:
    """The runner whose flow or step is running."""

    async def test_in_a_flow_and_in_its_steps(self, store: MemoryStore) -> None:
        """On the loop, in a thread, in tasks, and in a child, which has its own."""
        found: list[tuple[str, bool, bool]] = []

        def look(expected: Runner) -> None:
            found.append((current_runner().run_id, current_runner() is expected, in_step()))

        @flow
        async def inner(runner: Runner) -> None:
            look(runner)
            await runner.step("sync", lambda: look(runner))

        @flow
        async def outer(runner: Runner) -> None:
            async def on_loop() -> None:
                look(runner)

            look(runner)
            await runner.step("async", on_loop)
            await runner.step("sync", lambda: look(runner))
            await asyncio.create_task(on_loop())
            await runner.scope("part").step("scoped", on_loop)
            await runner.first("race", only=on_loop)
            await runner.flow("child", inner)
            look(runner)

        await outer.run(store, "run")
        assert found == [
            ("run", True, False),
            ("run", True, True),
            ("run", True, True),
            ("run", True, False),
            ("run", True, True),
            ("run", True, False),
            ("run/child", True, False),
            ("run/child", True, True),
            ("run", True, False),
        ]

    async def test_in_a_flow_that_is_called(self, store: MemoryStore) -> None:
        """A flow called with a runner of one's own has that, and none is left behind."""

        @flow
        async def called(runner: Runner) -> bool:
            return current_runner() is runner

        async with Runner(store, "run") as runner:
            assert await called(runner)
        with pytest.raises(DurableError, match="outside a flow"):
            current_runner()

    async def test_outside(self, store: MemoryStore) -> None:
        """Outside of both it raises, and `in_step` doesn't."""
        assert not in_step()
        async with Runner(store, "run"):
            with pytest.raises(DurableError, match="outside a flow"):
                current_runner()

    async def test_what_a_step_left_behind_is_in_no_step(self, store: MemoryStore) -> None:
        """A task that goes on after its step isn't inside one any more."""
        may_look = asyncio.Event()

        async def later() -> bool:
            await may_look.wait()
            return in_step()

        async def leave() -> None:
            tasks.append(asyncio.create_task(later()))

        tasks: list[asyncio.Task[bool]] = []
        async with Runner(store, "run") as runner:
            await runner.step("leave", leave)
            may_look.set()
            assert not await tasks[0]
