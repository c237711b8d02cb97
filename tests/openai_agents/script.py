"""A model that follows a script, and says nothing by itself: what it answers depends on what it is asked alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from agents import ModelResponse, Usage
from agents.models.interface import Model
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

Answers = Callable[[list[dict[str, Any]]], Any]


class Script(Model):
    """Answers with what `answers` returns for the items of a request: texts, and calls made by `call` or otherwise."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[list[dict[str, Any]]] = []

    async def get_response(self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
        items = [{"role": "user", "content": input}] if isinstance(input, str) else list(input)
        self.asked.append(items)
        answer = self.answers(items)
        output = [text(said) if isinstance(said, str) else said for said in answer]
        usage = Usage(requests=1, input_tokens=len(items), output_tokens=2, total_tokens=len(items) + 2)
        return ModelResponse(output, usage, response_id=f"response-{len(items)}")

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def text(said: str) -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=said, annotations=[])
    return ResponseOutputMessage(id="message", type="message", role="assistant", status="completed", content=[content])


def call(tool: str, arguments: str = "{}", call_id: str = "call_0") -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(type="function_call", call_id=call_id, name=tool, arguments=arguments)


def outputs(items: list[dict[str, Any]]) -> list[Any]:
    """Return what the tools have returned so far, as the model reads it."""
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


def once(*calls: Any, then: str = "done: {}") -> Answers:
    """Ask for these calls, and say then what came of them."""

    def answers(items: list[dict[str, Any]]) -> list[Any]:
        found = outputs(items)
        return [then.format(", ".join(map(str, found)))] if found else list(calls)

    return answers
