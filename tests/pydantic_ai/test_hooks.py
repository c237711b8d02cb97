"""The names of pydantic-ai that this stands on, so that a change upstream is seen here first."""

from __future__ import annotations

import inspect

import pydantic_ai.durable_exec
import pytest
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.durable_exec import (
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    ExternalEventWaiter,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
)

from durable_pydantic_ai import Durability


@pytest.mark.parametrize(
    "name",
    [
        "JSON_CODEC",
        "BaseDurabilityCapability",
        "BoundDurableOperation",
        "CapabilityOperationId",
        "DurabilityEngineSpec",
        "DurableOperation",
        "EventStreamHandlerId",
        "ExternalEventError",
        "ExternalEventWaiter",
        "JournalCallableOperationBackend",
        "ModelRequestId",
        "RoleBasedOperationConfig",
        "ToolsetCallToolId",
        "ToolsetGetInstructionsId",
        "ToolsetGetToolsId",
        "ToolsetValidateToolArgumentsId",
        "conversation_id_from_run_id",
        "external_event_scope",
        "record_durable_unit",
        "replay_scope",
    ],
)
def test_it_is_public(name: str) -> None:
    """pydantic-ai offers it to engines."""
    assert name in pydantic_ai.durable_exec.__all__


@pytest.mark.parametrize(
    ("owner", "hook", "parameters"),
    [
        (AbstractCapability, "wrap_run", ["self", "ctx", "handler"]),
        (AbstractCapability, "handle_deferred_tool_calls", ["self", "ctx", "requests"]),
        (AbstractCapability, "get_default_run_id", ["self"]),
        (AbstractCapability, "get_default_conversation_id", ["self", "run_id"]),
        (AbstractCapability, "get_run_start_time", ["self", "run_id"]),
        (BaseDurabilityCapability, "__init__", ["self", "models", "event_stream_handler", "name"]),
        (BaseDurabilityCapability, "get_durable_operation_backend", ["self"]),
        (BaseDurabilityCapability, "from_agent", ["agent"]),
        (JournalCallableOperationBackend, "bind", ["self", "operation"]),
        (JournalCallableOperationBackend, "execute", ["self", "operation_id", "name", "body", "cache_key", "config"]),
        (RoleBasedOperationConfig, "__init__", ["self", "model", "event", "capability", "tool", "resolve_tool"]),
        (ExternalEventWaiter, "wait", ["self", "name", "ask", "timeout"]),
    ],
)
def test_it_is_called_as_we_have_it(owner: type, hook: str, parameters: list[str]) -> None:
    """The hook has the parameters that we override or give."""
    assert list(inspect.signature(getattr(owner, hook)).parameters) == parameters


def test_the_engine_says_of_itself_what_upstream_knows() -> None:
    """Each field of the specification that we set is there."""
    fields = {"codec", "serialization_failure", "tool_config_key", "toolset_lifecycles", "journal_discovery"}
    assert fields <= set(DurabilityEngineSpec.__dataclass_fields__)
    assert isinstance(BaseDurabilityCapability.in_durable_context, property)
    assert Durability.engine_spec.tool_config_key == "durable"
