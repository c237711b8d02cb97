"""The parts of the Agents SDK on which the integration stands: a change of one of them fails here, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import iscoroutinefunction, signature
from typing import Any

import pytest
from agents import Agent, FunctionTool, Handoff, ModelResponse, RunConfig, RunResult, RunState, ToolApprovalItem, function_tool
from agents.models.interface import Model, ModelProvider
from agents.tool import resolve_function_tool_failure_error_function, set_function_tool_failure_error_function
from agents.tool_context import ToolContext


def names(of: Any) -> set[str]:
    return {field.name for field in fields(of)}


@pytest.mark.parametrize("method", [Agent.get_all_tools, Agent.get_system_prompt, Agent.get_prompt, Model.get_response])
def test_what_is_overridden_is_async(method: Callable[..., Any]) -> None:
    """The SDK awaits what a durable agent and a recorded model answer in place of its own."""
    assert iscoroutinefunction(method)


def test_arguments_that_are_recorded_come_first() -> None:
    """A model request begins with the instructions and the items."""
    assert list(signature(Model.get_response).parameters)[1:3] == ["system_instructions", "input"]
    assert list(signature(ModelProvider.get_model).parameters) == ["self", "model_name"]


def test_fields_that_are_set() -> None:
    """Copies of the SDK's objects are made by these fields."""
    assert {"name", "model", "tools", "handoffs", "mcp_servers"} <= names(Agent)
    assert {"name", "on_invoke_tool", "needs_approval", "timeout_seconds", "timeout_behavior", "timeout_error_function"} <= names(
        FunctionTool
    )
    assert {"model", "model_provider"} <= names(RunConfig)
    assert {"on_invoke_handoff"} <= names(Handoff)
    assert {"output", "usage", "response_id"} <= names(ModelResponse)
    assert {"tool_call_id"} <= names(ToolContext)


def test_an_agent_that_is_a_tool_is_known_as_one() -> None:
    """Two private attributes tell which agent a tool is; approvals inside it could not be refused without."""
    inner = Agent("inner")
    tool = inner.as_tool("inner", "Inner.")
    assert vars(tool)["_is_agent_tool"] is True
    assert vars(tool)["_agent_instance"] is inner


def test_the_failure_function_can_be_read_and_switched_off() -> None:
    """A tool's exception is text for the model by default, and only then not."""

    @function_tool
    def fails() -> str:
        raise ValueError

    assert resolve_function_tool_failure_error_function(fails) is not None
    assert resolve_function_tool_failure_error_function(set_function_tool_failure_error_function(fails, None)) is None


def test_interruptions_are_answered_on_a_state() -> None:
    """A run that was interrupted goes on from a state that is told of each decision."""
    assert callable(RunResult.to_state)
    assert "interruptions" in {*names(RunResult), *dir(RunResult)}
    assert "rejection_message" in signature(RunState.reject).parameters
    assert callable(RunState.approve)
    assert all(hasattr(ToolApprovalItem, name) for name in ("name", "arguments", "call_id"))
