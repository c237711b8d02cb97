"""Tool calls that wait: an approval for each that people decide on, an event for each that is made elsewhere."""

from __future__ import annotations

from asyncio import create_task, gather
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from pydantic import JsonValue
from pydantic_ai import RunContext, ToolFailed
from pydantic_ai.durable_exec import ExternalEventError, ExternalEventWaiter
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolApprovalResult, DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied

from durable_core import Approvals, StepFailed
from durable_core.errors import DeadlinePassed

from ._scopes import AgentScope

_SHOWN: Final = 200


async def answer_calls(
    scope: AgentScope,
    ctx: RunContext[Any],
    requests: DeferredToolRequests,
    approvals_for: Callable[[ToolCallPart], Approvals],
) -> DeferredToolResults:
    """Wait until people have decided on these calls, and for the results of those that are made elsewhere."""
    results = DeferredToolResults()

    async def approve(call: ToolCallPart, step_id: str) -> None:
        results.approvals[call.tool_call_id], results.answered_by[call.tool_call_id] = await decide(
            scope, step_id, call, requests.metadata.get(call.tool_call_id), approvals_for(call)
        )

    async def receive(call: ToolCallPart, step_id: str) -> None:
        shown = f"{call.tool_name}({call.args_as_json_str()})"
        name = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
        try:
            results.calls[call.tool_call_id] = await scope.runner.event(step_id, name=name)
        except StepFailed as failed:  # sent by `control.send_failure`
            results.calls[call.tool_call_id] = ToolFailed(failed.error.message)

    waits = [approve(call, scope.step_id(f"approve-{call.tool_name}", ctx, call.tool_call_id)) for call in requests.approvals]
    waits += [receive(call, scope.step_id(f"answer-{call.tool_name}", ctx, call.tool_call_id)) for call in requests.calls]
    tasks = [create_task(each) for each in waits]
    try:
        await gather(*tasks)
    finally:  # if one fails, the others must not wait on
        for task in tasks:
            task.cancel()
        await gather(*tasks, return_exceptions=True)
    return results


async def decide(
    scope: AgentScope, step_id: str, call: ToolCallPart, metadata: dict[str, Any] | None, approvals: Approvals
) -> tuple[DeferredToolApprovalResult, str]:
    """Ask people about a call. Return their decision, in the form of pydantic-ai, and who decided."""
    show: dict[str, Any] = {"tool": call.tool_name, "edit": call.args_as_dict()}
    if metadata:
        show["metadata"] = metadata
    options: Approvals = {"on_timeout": "reject", **approvals}
    decision = await scope.runner.approval(step_id, show, name=f"may {call.tool_name} be called", **options)
    if not decision:
        told = f"The call was rejected: {decision.reason}" if decision.reason else "The call was rejected."
        return ToolDenied(told), decision.by
    if decision.value is None:
        return ToolApproved(), decision.by
    if not isinstance(decision.value, dict):  # the approval is final, but nobody approved the original arguments
        told = "The call was approved with other arguments that are not a JSON object, so it was not made."
        return ToolDenied(told), decision.by
    return ToolApproved(override_args=decision.value), decision.by


class EventWaiter(ExternalEventWaiter):
    """Lets capabilities of pydantic-ai that ask people, such as `RequestInput`, wait for an event of the run."""

    def __init__(self, scope: AgentScope) -> None:
        self._scope = scope

    async def wait(self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None) -> JsonValue:
        """Wait for an event with the full step id as token: `control.send(store, run_id, token, answer)` answers it."""
        runner = self._scope.runner
        step_id = self._scope.step_id(name, None)
        answer: JsonValue = await runner.step(f"{step_id}-ask", ask, f"{runner.prefix}{step_id}", returns=Any)
        if answer is not None:
            return answer
        try:
            received: JsonValue = await runner.event(step_id, timeout=timeout)
        except StepFailed as failed:
            late = failed.error.matches(DeadlinePassed)
            raise ExternalEventError("nobody answered in time" if late else failed.error.message) from failed
        return received
