"""Tool calls that wait for people. Each is an approval."""

from __future__ import annotations

import json
from asyncio import create_task, gather
from collections.abc import Sequence
from typing import Any

from agents import RunState, ToolApprovalItem

from durable_core import Approvals

from ._calls import Calls


async def decide(calls: Calls, state: RunState[Any, Any], items: Sequence[ToolApprovalItem]) -> None:
    """Wait until people have decided on all these calls, and pass their decisions to the SDK."""
    tasks = [create_task(_decide(calls, state, item)) for item in items]
    try:
        await gather(*tasks)
    finally:  # if one fails, the others must not wait on
        for task in tasks:
            task.cancel()
        await gather(*tasks, return_exceptions=True)


async def _decide(calls: Calls, state: RunState[Any, Any], item: ToolApprovalItem) -> None:
    tool = item.name or "tool"
    call_id = item.call_id or ""
    options: Approvals = {"on_timeout": "reject", **(calls.approvals(tool) or {})}
    decision = await calls.runner.approval(
        calls.step_id(f"approve-{tool}", call_id),
        {"agent": item.agent.name, "tool": tool, "edit": _shown(item.arguments)},
        name=f"may {tool} be called",
        **options,
    )
    if not decision:
        told = f"The call was rejected: {decision.reason}" if decision.reason else "The call was rejected."
        state.reject(item, rejection_message=told)
    elif decision.value is None:
        state.approve(item)
    elif isinstance(decision.value, dict) and getattr(item.raw_item, "type", None) == "function_call":
        calls.edited[calls.step_id(tool, call_id)] = json.dumps(decision.value)
        state.approve(item)
    else:  # not an object, or a tool of the provider: the call can't take the value, and nobody approved it without
        told = "The call was approved with other arguments that it can't take, so it was not made."
        state.reject(item, rejection_message=told)


def _shown(arguments: str | None) -> Any:
    """Return a call's arguments to show: as JSON, or the model's text if that is not JSON."""
    try:
        return json.loads(arguments or "null", parse_constant=str)
    except ValueError:
        return arguments
