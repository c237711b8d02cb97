"""Calls of tools that an MCP server has are steps, as those of function tools."""

from __future__ import annotations

from typing import Any

from agents import Agent
from agents.mcp import MCPServer
from mcp.types import CallToolResult, GetPromptResult, ListPromptsResult, TextContent, Tool

from durable_core import MemoryStore, Runner
from durable_openai_agents import run_agent
from tests.core.conftest import Effects

from .script import Script, call, once


class Weather(MCPServer):
    """A server within the process."""

    def __init__(self, effects: Effects) -> None:
        super().__init__()
        self.effects = effects

    @property
    def name(self) -> str:
        return "weather"

    async def connect(self) -> None:
        pass

    async def cleanup(self) -> None:
        pass

    async def list_tools(self, *args: Any, **kwargs: Any) -> list[Tool]:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        return [Tool.model_validate({"name": "look", "description": "Looks.", "inputSchema": schema})]

    async def call_tool(self, tool_name: str, arguments: dict[str, Any] | None, *args: Any, **kwargs: Any) -> CallToolResult:
        if self.effects.happen("tried") and self.effects["tried"] == 1:
            raise ConnectionError("away")
        return CallToolResult(content=[TextContent(type="text", text=f"sunny in {(arguments or {})['city']}")])

    async def list_prompts(self) -> ListPromptsResult:
        raise NotImplementedError

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None) -> GetPromptResult:
        raise NotImplementedError


async def test_a_call_of_a_server_is_a_step(store: MemoryStore, effects: Effects) -> None:
    """It is tried again when it failed, and not made on a replay."""
    model = Script(once(call("look", '{"city": "Rome"}')))
    agent = Agent("scout", mcp_servers=[Weather(effects)], model=model)
    results = []
    for _ in range(2):
        async with Runner(store, "run", retry_delay=0) as runner:
            results.append(await run_agent(runner, "scout", agent, "Go.", tools={"look": {"max_attempts": 2}}))
    assert "sunny in Rome" in results[0].final_output
    assert results[0].to_input_list() == results[1].to_input_list()
    assert effects["tried"] == 2
    assert [record.step_id for record in await store.list("run")] == ["scout/1-model", "scout/1-look-call_0", "scout/2-model"]
