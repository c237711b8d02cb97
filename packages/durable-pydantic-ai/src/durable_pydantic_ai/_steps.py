"""Makes each operation of an agent, such as a model request or a tool call, a step of a runner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.durable_exec import (
    BoundDurableOperation,
    CapabilityOperationId,
    DurableOperation,
    DurableOperationId,
    EventStreamHandlerId,
    JournalCallableOperationBackend,
    ModelRequestId,
    ResultCodec,
    ToolsetCallToolId,
    ToolsetGetInstructionsId,
    ToolsetGetToolsId,
    ToolsetValidateToolArgumentsId,
    record_durable_unit,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python

from durable_core import DurableError, StepDrift, StepOptions, StepReused

from ._scopes import AgentScope, outside_scopes, scope_here

ParamsT = TypeVar("ParamsT")
WireT = TypeVar("WireT")
ResultT = TypeVar("ResultT")

_EFFECTS_ONLY: Final = ("at_most_once", "recover")
_MODEL: Final = (ModelRequestId,)


@dataclass(frozen=True)
class Recorded:
    """A step's recorded value and the step's id."""

    step_id: str
    payload: object


class RecordedCodec(ResultCodec[Any]):
    """Raises `StepDrift` for a recorded value that no longer decodes. Otherwise the model would be asked for other arguments."""

    def __init__(self, codec: ResultCodec[Any]) -> None:
        self._codec = codec

    def dump(self, value: Any) -> object:
        return self._codec.dump(value)

    def load(self, payload: object) -> Any:
        recorded = cast(Recorded, payload)
        try:
            return self._codec.load(recorded.payload)
        except (ValidationError, ValueError, TypeError, LookupError) as error:
            raise StepDrift(
                f"the recorded result of step {recorded.step_id!r} can't be read: {error}; run it with the code and the version"
                " of pydantic-ai that recorded it",
                step_id=recorded.step_id,
            ) from error


class Unit:
    """The function of a step. It calls an operation's body, and remembers that it did."""

    def __init__(self, body: Callable[[], Awaitable[object]]) -> None:
        self._body = body
        self.ran = False

    async def __call__(self, *_arguments: object) -> Any:
        self.ran = True
        with outside_scopes():
            return await self._body()


class StepBackend(JournalCallableOperationBackend[Mapping[str, Any]]):
    """Runs the operations of an agent as steps of the agent's scope."""

    def bind(self, operation: DurableOperation[ParamsT, WireT, ResultT]) -> BoundDurableOperation[ParamsT, WireT, ResultT]:
        return super().bind(replace(operation, result_codec=RecordedCodec(operation.result_codec)))

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: Mapping[str, Any],
    ) -> Recorded:
        if (scope := scope_here()) is None:
            raise DurableError(f"{name} was called outside agent_scope")
        step_id, title, arguments = described(scope, operation_id, name, cache_key)
        options = dict(config)
        if not isinstance(operation_id, ToolsetCallToolId):
            for option in _EFFECTS_ONLY:
                options.pop(option, None)
        unit = Unit(body)
        try:
            payload = await scope.runner.step(
                step_id, unit, *arguments, returns=Any, **cast(StepOptions, {"name": title, **options})
            )
        except StepReused as error:
            raise scope.reused() from error
        record_durable_unit(executed=unit.ran)
        return Recorded(scope.runner.prefix + step_id, payload)


def described(
    scope: AgentScope, operation_id: DurableOperationId, name: str, cache_key: tuple[object, ...]
) -> tuple[str, str, tuple[object, ...]]:
    """Return the id of an operation's step, its name for people, and the arguments to compare on a replay."""
    ctx: RunContext[Any] | None = next((part for part in cache_key if isinstance(part, RunContext)), None)
    match operation_id:
        case ModelRequestId(model_name=model):
            return scope.step_id("model", ctx), f"ask {model.rstrip(':')}", ()  # FunctionModel has a trailing one
        case ToolsetCallToolId():
            tool = str(cache_key[0])
            return scope.step_id(tool, ctx), tool, _comparable(cache_key[1])
        case ToolsetValidateToolArgumentsId():
            return scope.step_id(f"check-{cache_key[0]}", ctx), f"check the arguments of {cache_key[0]}", ()
        case ToolsetGetToolsId(toolset_id=toolset):
            return scope.step_id(f"tools-{toolset}", ctx), f"list the tools of {toolset}", ()
        case ToolsetGetInstructionsId(toolset_id=toolset):
            return scope.step_id(f"instructions-{toolset}", ctx), f"ask {toolset} for its instructions", ()
        case EventStreamHandlerId():
            return scope.step_id("event", None), "tell an event", ()
        case CapabilityOperationId(capability_id="workspace", operation="call") if ctx is None:  # as pydantic-ai has it
            method = str(getattr(cache_key[0], "method", "call"))
            return scope.step_id(f"workspace-{method}", None), f"workspace: {method}", _comparable(cache_key[0])
        case CapabilityOperationId(capability_id=capability, operation=operation):
            return scope.step_id(f"{capability}.{operation}", ctx), f"{capability}: {operation}", ()
        case _:  # rare operations, and those that pydantic-ai adds later
            return scope.step_id(name.partition("__")[2] or name, ctx), name, ()


def _comparable(arguments: object) -> tuple[object, ...]:
    """Return a tool's arguments as JSON, so that a replay notices changed ones. Returns nothing if they have no JSON form."""
    try:
        return (to_jsonable_python(arguments),)
    except PydanticSerializationError:
        return ()
