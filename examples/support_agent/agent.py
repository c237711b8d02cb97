"""A support agent that survives: it finds an order, looks the rules up, refunds, and writes to the customer.

`python examples/support_agent/agent.py ticket-7 A-7` runs a ticket on SQLite, and takes its time, so that you can kill it. A
refund above 50 waits for two people; run it again once they decided. Without `SUPPORT_MODEL` the model is a function of this
file, so that no key is needed.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic_ai import Agent, ApprovalRequired, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from durable_core import Runner, RunSuspended, StepEvent, current_step, flow, open_store
from durable_pydantic_ai import Approvals, Durability, run_agent

LIMIT = 50
"""What is refunded without asking anybody."""
STORE = os.environ.get("DURABLE_STORE", "sqlite:./support.db")


@dataclass(frozen=True)
class Desk:
    """What the tools reach: a bank that knows a repeated key, an outbox, and a list of all calls."""

    folder: Path
    pace: float
    """Seconds that a tool takes."""

    def note(self, tool: str) -> str:
        """Write down that a tool was called, by which step."""
        key = current_step().idempotency_key
        with (self.folder / "calls.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": current_step().run_id, "tool": tool, "key": key}) + "\n")
        return key

    def pay_back(self, key: str, order_id: str, amount: int) -> None:
        """Pay once for each key, as payment services do."""
        try:
            with (self.folder / f"refund-{key}.json").open("x", encoding="utf-8") as file:
                json.dump({"order": order_id, "amount": amount}, file)
        except FileExistsError:
            pass  # paid before the crash


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Stand in for a model: two questions at once, a refund, a letter, and a last word."""
    await asyncio.sleep(0.02)
    first = messages[0]
    assert isinstance(first, ModelRequest)
    asked = next(part.content for part in first.parts if isinstance(part, UserPromptPart))
    order_id = str(asked).rpartition(" ")[2]
    calls: list[tuple[str, dict[str, str | int]]]
    match sum(isinstance(message, ModelResponse) for message in messages):
        case 0:
            calls = [("find_order", {"order_id": order_id}), ("search_rules", {"question": "refunds"})]
        case 1:
            calls = [("refund", {"order_id": order_id, "amount": 90})]
        case 2:
            [told] = (part for part in messages[-1].parts if isinstance(part, ToolReturnPart))
            calls = [("write_to_customer", {"text": f"About {order_id}: {told.content}"})]
        case _:
            return ModelResponse(parts=[TextPart(f"The ticket about {order_id} is closed.")])
    return ModelResponse(parts=[ToolCallPart(tool, args, tool_call_id=f"call_{n}") for n, (tool, args) in enumerate(calls)])


agent = Agent(
    os.environ.get("SUPPORT_MODEL") or FunctionModel(answer, model_name="a-function"),
    name="support",
    deps_type=Desk,
    capabilities=[Durability[Desk](model={"max_attempts": 3, "retry_delay": 2})],
    instructions="Find the order, look the rules up, refund if they allow it, write to the customer, then close the ticket.",
)


@agent.tool
async def find_order(ctx: RunContext[Desk], order_id: str) -> dict[str, str | int]:
    """Find an order by its id."""
    ctx.deps.note("find_order")
    await asyncio.sleep(ctx.deps.pace)
    return {"id": order_id, "item": "teapot", "price": 90}


@agent.tool
async def search_rules(ctx: RunContext[Desk], question: str) -> str:
    """Search the shop's rules."""
    ctx.deps.note("search_rules")
    await asyncio.sleep(1.5 * ctx.deps.pace)
    return "What arrives broken is refunded in full."


@agent.tool(metadata={"durable": {"approvals": Approvals(quorum=2)}})
async def refund(ctx: RunContext[Desk], order_id: str, amount: int) -> str:
    """Refund an order, whole or in part."""
    if amount > LIMIT and not ctx.tool_call_approved:
        raise ApprovalRequired(metadata={"limit": LIMIT})
    key = ctx.deps.note("refund")
    ctx.deps.pay_back(key, order_id, amount)
    await asyncio.sleep(ctx.deps.pace)
    return f"refunded {amount}"


@agent.tool
async def write_to_customer(ctx: RunContext[Desk], text: str) -> str:
    """Send a letter to the customer."""
    ctx.deps.note("write_to_customer")
    await asyncio.sleep(ctx.deps.pace)
    return "sent"


@flow(wait_limit=0)
async def ticket(runner: Runner, *, order_id: str, folder: str, pace: float = 0.02) -> list[str]:
    """Work on a ticket, and return what was said, by whom."""
    desk = Desk(Path(folder), pace)
    result = await run_agent(runner, "support", agent, f"The teapot arrived broken, order {order_id}", deps=desk)
    return [said for message in result.all_messages() for said in transcript(message)]


def transcript(message: ModelMessage) -> list[str]:
    """Return a message as lines."""
    lines = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            lines.append(f"{part.tool_name}({part.args_as_json_str()})")
        elif isinstance(part, ToolReturnPart):
            lines.append(f"{part.tool_name}: {part.model_response_str()}")
        elif isinstance(part, TextPart | UserPromptPart):
            lines.append(str(part.content))
    return lines


TOLD = {
    "step:start": "begins",
    "step:success": "done",
    "step:retry": "failed, and is tried again",
    "step:replay": "was done before",
}


def tell(event: StepEvent) -> None:
    """Show what happens, while it does."""
    if event.type in TOLD:
        print(f"  {event.name}: {TOLD[event.type]}", file=sys.stderr)


async def main(run_id: str, order_id: str) -> None:
    folder = Path("desk")
    folder.mkdir(exist_ok=True)
    async with open_store(STORE) as store:
        try:
            told = ticket.options(on_event=tell, wait_limit=5)
            print(*await told.run(store, run_id=run_id, order_id=order_id, folder=str(folder), pace=2), sep="\n")
        except RunSuspended as suspended:
            print(f"{suspended}\nWhat it waits for:\n  durable why {run_id} --store {STORE}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} TICKET ORDER, such as ticket-7 A-7")
    asyncio.run(main(sys.argv[1], sys.argv[2]))
