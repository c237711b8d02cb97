"""What capabilities of pydantic-ai do beside model and tools: their operations, and the workspace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, AgentRunResult, RunContext
from pydantic_ai.capabilities import AbstractCapability, durable_operation
from pydantic_ai.capabilities.abstract import WrapRunHandler
from pydantic_ai.capabilities.local_workspace import LocalWorkspace
from pydantic_ai.models import ModelRequestContext

from durable_core import MemoryStore, Runner, StepDrift
from durable_pydantic_ai import Durability, agent_scope
from tests.core.conftest import Killed
from tests.pydantic_ai.conftest import call, scripted


class Audit(AbstractCapability[None]):
    """Notes what happens: before the run, twice at once in each turn, and after it."""

    id = "audit"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dies_at = ""

    @durable_operation(name="note")
    async def note(self, ctx: RunContext[None], what: str) -> str:
        if what == self.dies_at:
            raise Killed
        self.notes.append(what)
        return f"noted {what}"

    async def before_run(self, ctx: RunContext[None]) -> None:
        assert await self.note(ctx, "begin") == "noted begin"

    async def before_model_request(self, ctx: RunContext[None], request_context: ModelRequestContext) -> ModelRequestContext:
        noted = await asyncio.gather(*(self.note(ctx, f"{side} {ctx.run_step}") for side in ("left", "right")))
        assert noted == [f"noted left {ctx.run_step}", f"noted right {ctx.run_step}"]
        return request_context

    async def after_run(self, ctx: RunContext[None], *, result: AgentRunResult[Any]) -> AgentRunResult[Any]:
        await self.note(ctx, "end")
        return result


async def test_operations_of_a_capability_are_steps(memory: MemoryStore) -> None:
    """Each happens once, also where the process dies between two of them, and for a second run in the same scope."""
    audit = Audit()
    agent = Agent(scripted([call("look")], "done"), name="scout", capabilities=[audit, Durability()])

    @agent.tool_plain
    def look() -> str:
        return "found"

    async def run() -> list[str]:
        async with Runner(memory, "run", on_drift="raise") as runner:
            with agent_scope(runner, "scout"):
                return [(await agent.run("go")).output for _ in range(2)]

    audit.dies_at = "right 2"
    with pytest.raises(Killed):
        await run()
    audit.dies_at = ""
    for _ in range(2):
        assert await run() == ["done", "done"]
    once = ["begin", "left 1", "right 1", "left 2", "right 2", "end"]
    assert audit.notes == once * 2
    steps = [record.step_id for record in await memory.list("run")]
    assert steps[:4] == ["scout/audit.note-0", "scout/audit.note-1", "scout/audit.note-1~2", "scout/model-1"]
    assert "scout/run-2/audit.note-1~2" in steps


class Writer(AbstractCapability[None]):
    """Writes into the workspace, reads that, and runs a command, before each request; it writes before the run as well."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    async def wrap_run(self, ctx: RunContext[None], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        assert ctx.workspace is not None
        await ctx.workspace.write_bytes("a.txt", b"before")
        return await handler()

    async def before_model_request(self, ctx: RunContext[None], request_context: ModelRequestContext) -> ModelRequestContext:
        assert ctx.workspace is not None
        await ctx.workspace.write_bytes("a.txt", self.text)
        assert await ctx.workspace.read_bytes("a.txt") == self.text
        counted = await ctx.workspace.run("wc -c < a.txt; echo ran >> ran.txt", shell=True)
        assert int(counted.stdout) == len(self.text)
        with pytest.raises(FileNotFoundError):
            await ctx.workspace.read_bytes("b.txt")
        return request_context


async def test_calls_to_the_workspace_are_steps(memory: MemoryStore, tmp_path: Path) -> None:
    """Commands run once, errors and bytes come back as they were, and another call than recorded is drift."""

    async def run(text: bytes) -> None:
        capabilities = [LocalWorkspace[None](tmp_path), Writer(text), Durability[None]()]
        agent = Agent(scripted("done"), name="writer", capabilities=capabilities)
        async with Runner(memory, "run", on_drift="raise") as runner:
            with agent_scope(runner, "write"):
                await agent.run("go")

    for _ in range(2):
        await run(b"four")
    assert (tmp_path / "ran.txt").read_text().split() == ["ran"]
    assert [record.step_id for record in await memory.list("run")] == [
        "write/workspace-ensure",
        "write/workspace-write_bytes",
        "write/workspace-write_bytes~2",
        "write/workspace-read_bytes",
        "write/workspace-run",
        "write/workspace-read_bytes~2",
        "write/model-1",
    ]
    with pytest.raises(StepDrift, match="'write/workspace-write_bytes~2'"):
        await run(b"other")
