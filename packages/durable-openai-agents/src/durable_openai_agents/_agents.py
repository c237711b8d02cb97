"""Copies of agents, and of the agents that they hand over to, with steps as tools."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, Final

from agents import Agent, FunctionTool, Handoff, Model, RunContextWrapper, Tool

from ._calls import Calls
from ._models import RecordedModel
from ._tools import check_tool, recorded_tool


@dataclass
class DurableAgent(Agent[Any]):
    """A copy of an agent. It asks the agent for instructions and tools, and makes the tools steps."""

    source: Agent[Any] = field(kw_only=True)
    calls: Calls = field(kw_only=True, repr=False)

    async def get_system_prompt(self, run_context: RunContextWrapper[Any]) -> str | None:
        return await self.source.get_system_prompt(run_context)

    async def get_prompt(self, run_context: RunContextWrapper[Any]) -> Any:
        return await self.source.get_prompt(run_context)

    async def get_all_tools(self, run_context: RunContextWrapper[Any]) -> list[Tool]:
        tools = await self.source.get_all_tools(run_context)
        for tool in tools:  # check again: an agent that a handoff chose was unknown before
            check_tool(self.source, tool, self.calls)
        return [recorded_tool(tool, self.calls) for tool in tools]


class Wrapping:
    """Makes durable agents, one for each agent, however many others hand over to it."""

    def __init__(self, calls: Calls) -> None:
        self._calls: Final = calls
        self._made: Final[dict[int, DurableAgent]] = {}

    def agent(self, start: Agent[Any]) -> DurableAgent:
        """Return the durable copy of an agent. Raises `TypeError` and `ValueError` as `run_agent` does."""
        durable = self._wrapped(start)
        sources = [made.source for made in self._made.values()]
        for source in sources:
            for tool in source.tools:
                check_tool(source, tool, self._calls)
        if all(_is_known(source) for source in sources):
            self._check_names({tool.name for source in sources for tool in source.tools if isinstance(tool, FunctionTool)})
        return durable

    def _check_names(self, known: Iterable[str]) -> None:
        if unknown := sorted(set(self._calls.tools).difference(known)):
            names = ", ".join(sorted(known)) or "none"
            raise ValueError(f"tools={unknown!r}: no agent has a tool of that name; available: {names}")

    def _wrapped(self, agent: Agent[Any]) -> DurableAgent:
        if isinstance(agent, DurableAgent):
            return agent
        if not isinstance(agent, Agent):
            raise TypeError(f"expected an Agent of the Agents SDK, not {agent!r}")
        if (durable := self._made.get(id(agent))) is None:
            given = {each.name: getattr(agent, each.name) for each in fields(Agent) if each.init}
            if isinstance(agent.model, Model):
                given["model"] = RecordedModel(agent.model, self._calls)
            given["handoffs"] = []
            durable = self._made[id(agent)] = DurableAgent(**given, source=agent, calls=self._calls)
            durable.handoffs = [
                self._handoff(each) if isinstance(each, Handoff) else self._wrapped(each) for each in agent.handoffs
            ]
        return durable

    def _handoff(self, handoff: Handoff[Any, Any]) -> Handoff[Any, Any]:
        async def invoke(context: RunContextWrapper[Any], arguments: str) -> Agent[Any]:
            return self._wrapped(await handoff.on_invoke_handoff(context, arguments))

        wrapped = copy(handoff)
        wrapped.on_invoke_handoff = invoke
        return wrapped


def _is_known(agent: Agent[Any]) -> bool:
    """Return True if all tools that the agent may get are known before it runs."""
    return not agent.mcp_servers and not any(isinstance(each, Handoff) for each in agent.handoffs)
