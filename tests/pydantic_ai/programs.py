"""A program that the tests kill: an agent that calls a tool of an MCP server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset, StdioTransport
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from durable_core import Runner, StepInterrupted, control, open_store
from durable_pydantic_ai import Durability, run_agent
from tests.every_store.forking import answer_of_fork


async def live(url: str, ledger: str, act: str) -> str:
    """Run the agent; the process dies in the tool's call or in the second request to the model, as `act` says."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("look", {"city": "Rome"}, tool_call_id="call_0")])
        if act == "request":
            os.kill(os.getpid(), 9)
        [told] = messages[-1].parts
        return ModelResponse(parts=[TextPart(f"It is {told.content}.")])

    server = str(Path(__file__).with_name("mcp_server.py"))
    transport = StdioTransport(sys.executable, [server, ledger, act, str(os.getpid())])
    weather = MCPToolset[None](transport, id="weather", init_timeout=60)  # a machine may be busy
    tools = weather.with_metadata(durable={"at_most_once": True})
    agent = Agent(FunctionModel(answer), name="scout", toolsets=[tools], capabilities=[Durability()])
    async with open_store(url) as store:
        if act == "retry":
            await control.retry(store, "run", "scout/look-1-call_0")
            return "retried"
        try:
            async with Runner(store, "run") as runner:
                return (await run_agent(runner, "scout", agent, "How is the weather?")).output
        except StepInterrupted:
            return "interrupted"


if __name__ == "__main__":
    url, ledger, *acts = sys.argv[1:]
    print(json.dumps([answer_of_fork(lambda act=act: live(url, ledger, act)) for act in acts]))
