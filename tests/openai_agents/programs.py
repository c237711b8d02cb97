"""Programs that the tests kill: two agent runs in one run, with parallel tools, an approval and a handoff."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from agents import Agent, RunResult, function_tool

from durable_core import Runner, RunSuspended, control, flow, open_store
from durable_openai_agents import Approvals, run_agent
from tests.every_store.forking import answer_of_fork

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


async def live(url: str, ledger: str, act: str) -> str:
    """Run both agents, with effects that are lines of a file, and die in the effect named `act`; or approve."""

    async def happen(name: str) -> str:
        if name == act:
            os.kill(os.getpid(), 9)
        with Path(ledger).open("a") as file:
            file.write(f"{name}\n")
        return name

    @flow(name="support", wait_limit=0)
    async def support(runner: Runner) -> list[Any]:
        return await two_agents(runner, happen)

    async with open_store(url) as store:
        if act == "approve":
            await control.approve(store, "run", ASKED, by="alice")
            return "approved"
        try:
            return f"returned {len(await support.run(store, run_id='run'))} transcripts"
        except RunSuspended as suspended:
            return f"waits for {', '.join(suspended.waiting_for)}"


if __name__ == "__main__":
    url, ledger, *acts = sys.argv[1:]
    print(json.dumps([answer_of_fork(lambda act=act: live(url, ledger, act)) for act in acts]))
