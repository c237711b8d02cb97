"""Tool calls that wait for people: an approval each, and an event for what is done elsewhere."""

from __future__ import annotations

from asyncio import create_task, gather
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, Literal

from pydantic import JsonValue
from pydantic_ai import RunContext
from pydantic_ai.durable_exec import ExternalEventError, ExternalEventWaiter
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolApprovalResult, DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied

from durable_core import StepFailed
from durable_core.errors import DeadlinePassed

from .scope import AgentScope

_SHOWN = 200


@dataclass(frozen=True)
class Approvals:
    """Who decides on a tool's calls: for all tools in `Durability(approvals=…)`, for one in its metadata.

    `quorum` different people have to approve, of `approvers` if given; one rejection decides. A call that nobody decided within
    `timeout` seconds is rejected, and the model is told so; with `on_timeout="fail"` the run fails instead.
    """

    _: KW_ONLY
    quorum: int = 1
    approvers: tuple[str, ...] | None = None
    timeout: float | timedelta | None = None
    on_timeout: Literal["fail", "reject"] = "reject"

    def __post_init__(self) -> None:
        if isinstance(self.approvers, str):
            raise TypeError(f"approvers must be several names, not one text; write ({self.approvers!r},)")
        if isinstance(self.quorum, bool) or not isinstance(self.quorum, int):
            raise TypeError(f"quorum must be a whole number of people from 1, not {self.quorum!r}")
        most = None if self.approvers is None else len(set(self.approvers))
        if self.quorum < 1 or (most is not None and self.quorum > most):
            limit = "" if most is None else f" to {most}, the number of approvers"
            raise ValueError(f"quorum must be from 1{limit}, not {self.quorum!r}")
        if self.on_timeout not in ("fail", "reject"):
            raise ValueError(f"on_timeout must be 'fail' or 'reject', not {self.on_timeout!r}")


async def answer_calls(
    scope: AgentScope,
    ctx: RunContext[Any],
    requests: DeferredToolRequests,
    approvals_for: Callable[[ToolCallPart], Approvals],
) -> DeferredToolResults:
    """Wait for what people decide on these calls, and for the results of those that are made elsewhere."""
    results = DeferredToolResults()

    async def approve(call: ToolCallPart, step_id: str) -> None:
        results.approvals[call.tool_call_id], results.answered_by[call.tool_call_id] = await decide(
            scope, step_id, call, requests.metadata.get(call.tool_call_id), approvals_for(call)
        )

    async def receive(call: ToolCallPart, step_id: str) -> None:
        shown = f"{call.tool_name}({call.args_as_json_str()})"
        name = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
        results.calls[call.tool_call_id] = await scope.runner.event(step_id, name=name)

    waits = [approve(call, scope.step_id(f"approve-{call.tool_name}", ctx, call.tool_call_id)) for call in requests.approvals]
    waits += [receive(call, scope.step_id(f"answer-{call.tool_name}", ctx, call.tool_call_id)) for call in requests.calls]
    tasks = [create_task(each) for each in waits]
    try:
        await gather(*tasks)
    finally:  # none waits on when one failed
        for task in tasks:
            task.cancel()
        await gather(*tasks, return_exceptions=True)
    return results


async def decide(
    scope: AgentScope, step_id: str, call: ToolCallPart, metadata: dict[str, Any] | None, approvals: Approvals
) -> tuple[DeferredToolApprovalResult, str]:
    """Show a call to people, and return what its tool and the model are told of their decision, and who decided."""
    show: dict[str, Any] = {"tool": call.tool_name, "arguments": call.args_as_dict()}
    if metadata:
        show["metadata"] = metadata
    decision = await scope.runner.approval(
        step_id,
        show,
        timeout=approvals.timeout,
        quorum=approvals.quorum,
        approvers=approvals.approvers,
        on_timeout=approvals.on_timeout,
        name=f"may {call.tool_name} be called",
    )
    if not decision:
        told = f"The call was rejected: {decision.reason}" if decision.reason else "The call was rejected."
        return ToolDenied(told), decision.by
    if decision.value is None:
        return ToolApproved(), decision.by
    if not isinstance(decision.value, dict):  # it can't be taken back, so it must not lead to a call that nobody meant
        told = "The call was approved with other arguments that are no JSON object, so it was not made."
        return ToolDenied(told), decision.by
    return ToolApproved(override_args=decision.value), decision.by


class EventWaiter(ExternalEventWaiter):
    """Lets capabilities of pydantic-ai that ask people, such as `RequestInput`, wait for an event of the run."""

    def __init__(self, scope: AgentScope) -> None:
        self._scope = scope

    async def wait(self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None) -> JsonValue:
        """Hand out the event's full id as the token: `control.send(store, run_id, token, answer)` answers."""
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
