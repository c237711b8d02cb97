"""Agents whose models say what a test wrote down; no test asks a model over the network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydantic_ai import models
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from durable_core import MemoryStore


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    before, models.ALLOW_MODEL_REQUESTS = models.ALLOW_MODEL_REQUESTS, False
    yield
    models.ALLOW_MODEL_REQUESTS = before


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def call(tool: str, call_id: str = "call_0", **arguments: Any) -> ToolCallPart:
    return ToolCallPart(tool, arguments, tool_call_id=call_id)


def scripted(*turns: Sequence[ToolCallPart] | str, asked: Counter[str] | None = None, name: str = "scripted") -> FunctionModel:
    """Make a model that gives the n-th of its answers in the n-th turn, and counts how often it is asked for each."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if asked is not None:
            asked[f"{name}-{turn + 1}"] += 1
        said = turns[turn]
        return ModelResponse(parts=[TextPart(said)] if isinstance(said, str) else list(said))

    return FunctionModel(answer, model_name=name)


def told(messages: Sequence[ModelMessage]) -> list[Any]:
    """Return what tools, or people in their place, told the model."""
    return [
        part.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]


def without_times(messages: Sequence[ModelMessage]) -> str:
    """Return messages as text, without the times of requests, which a replay makes anew."""
    return re.sub(r"timestamp=datetime\.datetime\([^)]*\)", "", repr(list(messages)))
