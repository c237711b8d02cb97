"""Function tools that make their calls steps."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from copy import copy
from inspect import isawaitable
from typing import Any, Final

from agents import (
    Agent,
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    HostedMCPTool,
    ImageGenerationTool,
    Tool,
    ToolOutputFileContent,
    ToolOutputImage,
    ToolOutputText,
    WebSearchTool,
)
from agents.tool import resolve_function_tool_failure_error_function, set_function_tool_failure_error_function
from agents.tool_context import ToolContext

from durable_core import DurableError, SomeFailed, StepFailed

from ._calls import Calls, inside_tool

_HOSTED: Final = (CodeInterpreterTool, FileSearchTool, HostedMCPTool, ImageGenerationTool, WebSearchTool)
"""Tools that the provider runs, as a part of the model request."""
_OUTPUTS: Final = (ToolOutputFileContent, ToolOutputImage, ToolOutputText)


def check_tool(agent: Agent[Any], tool: Tool, calls: Calls) -> None:
    """Raise `TypeError` if the calls of the tool can't be recorded."""
    if isinstance(tool, _HOSTED):
        return
    if not isinstance(tool, FunctionTool):
        raise TypeError(f"{type(tool).__name__} of agent {agent.name!r} can't be a step; make it a function tool")
    if (inner := _agent_of(tool)) is None:
        return
    better = _instead(tool)
    if not calls.is_step(tool.name):
        raise TypeError(f"tool {tool.name!r} of agent {agent.name!r} is an agent, whose run is one step; instead {better}")
    if any(getattr(each, "needs_approval", False) is not False for each in inner.tools):
        raise TypeError(
            f"tool {tool.name!r} of agent {agent.name!r} is an agent, whose run is one step, and its own tools need approval, for"
            f" which a step can't wait; hand over to {inner.name!r}, or {better}"
        )


def _agent_of(tool: FunctionTool) -> Agent[Any] | None:
    """Return the agent from which `as_tool` made this tool. None for any other tool."""
    return getattr(tool, "_agent_instance", None) if getattr(tool, "_is_agent_tool", False) else None


def _instead(tool: FunctionTool) -> str:
    return f"call run_agent in a function tool, and say tools={{{tool.name!r}: False}}"


def recorded_tool(tool: Tool, calls: Calls) -> Tool:
    """Return a copy of a tool that makes its calls steps. Returns a tool of the provider as it is."""
    if not isinstance(tool, FunctionTool):
        return tool
    once = set_function_tool_failure_error_function(copy(tool), None)
    once.timeout_seconds = None
    is_step = calls.is_step(tool.name)

    async def record(context: ToolContext[Any], arguments: str) -> Any:
        step_id = calls.step_id(tool.name, context.tool_call_id)
        arguments = calls.edited.get(step_id, arguments)
        if not is_step:
            return await once.on_invoke_tool(context, arguments)

        async def call(arguments: str) -> Any:
            inside_tool.set(calls)  # only for this call: it runs in a task of its own
            return _plain(await once.on_invoke_tool(context, arguments))

        options = {"timeout": tool.timeout_seconds, **calls.options(tool.name)}
        output = await calls.runner.step(step_id, call, arguments, returns=Any, **options)
        if output is None and _agent_of(tool) is not None:  # the SDK returns None for an agent that waits
            raise DurableError(
                f"tool {tool.name!r} is an agent, whose run is one step, and it returned nothing: something in it needs approval,"
                f" for which a step can't wait. Hand over to it, or {_instead(tool)}"
            )
        return output

    async def invoke(context: ToolContext[Any], arguments: str) -> Any:
        try:
            recorded = record(context, arguments)
            return await (calls.shielded(recorded) if is_step else recorded)
        except Exception as error:
            tell = _teller(tool, context, error)
            if tell is None:
                raise
            told = tell(context, error)
            return await told if isawaitable(told) else told

    wrapped = copy(once)
    wrapped.on_invoke_tool = invoke
    if not is_step:
        wrapped.timeout_seconds = tool.timeout_seconds
    if calls.approvals(tool.name) is not None and tool.needs_approval is False:
        wrapped.needs_approval = True
    return wrapped


def _teller(
    tool: FunctionTool, context: ToolContext[Any], error: Exception
) -> Callable[[ToolContext[Any], Exception], str | Awaitable[str]] | None:
    """Return the tool's function that words an error for the model. None if the error ends the agent run."""
    if isinstance(error, DurableError) and not isinstance(error, StepFailed | SomeFailed):
        return None
    seconds = tool.timeout_seconds
    if seconds is not None and isinstance(error, StepFailed) and error.error.matches(TimeoutError):
        if tool.timeout_behavior == "raise_exception":
            return None
        return tool.timeout_error_function or (lambda *_: f"Tool '{tool.name}' timed out after {seconds:g} seconds.")
    return resolve_function_tool_failure_error_function(tool, context)


def _plain(output: Any) -> Any:
    """Return a tool's output as JSON: as it is, in the SDK's own form, or as the text that the model would get."""
    if isinstance(output, _OUTPUTS):
        return output.model_dump(mode="json", exclude_none=True)
    if isinstance(output, list) and output and all(isinstance(each, _OUTPUTS) for each in output):
        return [_plain(each) for each in output]
    try:
        plain = json.loads(json.dumps(output, allow_nan=False))
    except (TypeError, ValueError):
        return str(output)
    return plain if plain == output else str(output)
