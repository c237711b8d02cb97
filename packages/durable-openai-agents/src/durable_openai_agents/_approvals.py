"""Tool calls that people decide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from agents import RunState, ToolApprovalItem

from ._calls import Calls
from .options import Approvals


async def decide(calls: Calls, state: RunState[Any, Any], items: Sequence[ToolApprovalItem]) -> None:
    """Wait until people have decided all these calls, and tell the SDK."""
    await asyncio.gather(*(_decide(calls, state, item) for item in items))


async def _decide(calls: Calls, state: RunState[Any, Any], item: ToolApprovalItem) -> None:
    tool = item.name or "tool"
    step_id = calls.step_id(tool, item.call_id or "")
    who = calls.approvals(tool) or Approvals()
    show = {"agent": item.agent.name, "tool": tool, "arguments": _shown(item.arguments)}
    decision = await calls.runner.approval(
        f"{step_id}-approval",
        show,
        timeout=who.timeout,
        quorum=who.quorum,
        approvers=who.approvers,
        on_timeout=who.on_timeout,
        name=tool,
    )
    if not decision:
        state.reject(item, rejection_message=decision.reason)
        return
    if decision.value is not None:
        calls.edited[step_id] = json.dumps(decision.value)
    state.approve(item)


def _shown(arguments: str | None) -> Any:
    """Return a call's arguments as people read them: as JSON, or as the text that the model wrote instead."""
    try:
        return json.loads(arguments or "null", parse_constant=str)
    except ValueError:
        return arguments
