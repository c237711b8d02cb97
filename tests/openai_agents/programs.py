"""What the tests kill: two agent runs in one run, with parallel tools, an approval and a handoff."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from agents import Agent, RunResult, function_tool

from durable_core import Runner
from durable_openai_agents import Approvals, run_agent

from .script import Script, call, outputs

Happen = Callable[[str], Awaitable[str]]
ASKED: Final = "support/2-approve-refund-call_2"
EFFECTS: Final = {"order": "support/1-order-call_0", "mood": "support/1-mood-call_1", "refund": "support/2-refund-call_2"}
"""What happens once, and the steps in which it does."""


async def two_agents(runner: Runner, happen: Happen) -> list[Any]:
    """Let one agent look, hand over and refund, and another one report; return both transcripts."""

    def tool(name: str, **options: Any) -> Any:
        async def act() -> str:
            return await happen(name)

        return function_tool(act, name_override=name, **options)

    def support(items: list[dict[str, Any]]) -> list[Any]:
        seen = outputs(items)
        if "refund" in seen:
            return ["refunded"]
        if not seen:
            return [call("order"), call("mood", call_id="call_1")]
        return [call("refund", call_id="call_2")]

    desk = Agent("desk", tools=[tool("order"), tool("mood"), tool("refund", needs_approval=True)], model=Script(support))
    writer = Agent("writer", model=Script(lambda items: [f"report of {len(items)}"]))
    clerk = Agent("clerk", handoffs=[writer], model=Script(lambda items: [call("transfer_to_writer")]))
    results: list[RunResult] = [
        await run_agent(runner, "support", desk, "I want my money.", tools={"refund": {"approvals": Approvals()}}),
        await run_agent(runner, "report", clerk, "Report."),
    ]
    return [result.to_input_list() for result in results]
