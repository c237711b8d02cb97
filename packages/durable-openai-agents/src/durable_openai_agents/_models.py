"""Models that record their responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from agents import Model, ModelProvider, ModelResponse, TResponseInputItem
from agents.items import TResponseStreamEvent

from durable_core import StepReused

from ._calls import Calls, inside_tool
from ._responses import from_json, to_json
from ._telemetry import tell_span


class RecordedModel(Model):
    """A model that makes its requests steps. Inside a tool's step, as in an agent that is a tool, it just asks the model."""

    def __init__(self, model: Model, calls: Calls) -> None:
        self._model: Final = model
        self._calls: Final = calls

    async def get_response(
        self, system_instructions: str | None, input: str | list[TResponseInputItem], *args: Any, **kwargs: Any
    ) -> ModelResponse:
        if inside_tool.get() is self._calls:
            return await self._model.get_response(system_instructions, input, *args, **kwargs)

        async def ask(system_instructions: str | None, input: str | list[TResponseInputItem]) -> dict[str, Any]:
            response = await self._model.get_response(system_instructions, input, *args, **kwargs)
            tell_span(self._model, response)
            return to_json(response)

        step_id = self._calls.next_request()
        options: dict[str, Any] = {"name": "model", **self._calls.model}
        try:
            recorded = await self._calls.runner.step(step_id, ask, system_instructions, input, returns=Any, **options)
        except StepReused as error:
            raise self._calls.reused() from error
        return from_json(step_id, recorded)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        if inside_tool.get() is self._calls:
            return self._model.stream_response(*args, **kwargs)
        raise TypeError("a stream of events can't be recorded: run the agent with run_agent, which asks for whole responses")

    def get_retry_advice(self, request: Any) -> Any:
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        await self._model.close()


class RecordedProvider(ModelProvider):
    """A provider of models that record their responses."""

    def __init__(self, provider: ModelProvider, calls: Calls) -> None:
        self._provider: Final = provider
        self._calls: Final = calls

    def get_model(self, model_name: str | None) -> Model:
        return RecordedModel(self._provider.get_model(model_name), self._calls)

    async def aclose(self) -> None:
        await self._provider.aclose()
