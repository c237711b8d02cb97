"""The capability that makes an agent of pydantic-ai durable."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, cast

from pydantic_ai import AgentRunResult, RunContext
from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.capabilities.abstract import WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    DurableOperationId,
    RoleBasedOperationConfig,
    conversation_id_from_run_id,
    external_event_scope,
    replay_scope,
)
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.tools import AgentDepsT, DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import ToolsetTool

from durable_core import (
    Approvals,
    DurableError,
    StepOptions,
    UnrecordableValue,
    check_approvals,
    check_step_options,
    current_runner,
    in_step,
)

from ._deciding import EventWaiter, answer_calls
from ._scopes import scope_here
from ._steps import StepBackend

KEY: Final = "durable"
APPROVALS: Final = "approvals"


def _unrecordable(error: Exception) -> BaseException:
    return UnrecordableValue(f"a model or a tool returned a value that has no JSON form, so it can't be recorded: {error}")


class Durability(BaseDurabilityCapability[AgentDepsT]):
    """Makes each model request, tool call and MCP call of an agent a step, if the agent runs in `agent_scope`.

    Write `Agent(…, capabilities=[Durability()])`. The agent needs a name, and its toolsets need ids. `model` and `tool` are
    options of the steps, such as attempts, delays and timeouts. The metadata of a tool replaces `tool` for this tool, as in
    `{"durable": {"at_most_once": True}}`. With `{"durable": False}`, its calls are not steps, so that it can use
    `current_runner()` itself. `{"durable": {"approvals": Approvals(quorum=2)}}` replaces `approvals` for this tool. `models` are
    models that runs may choose by name. `event_stream_handler` gets events as they come, on the first run.

    Changes that tools make to the dependencies are not recorded, and don't happen on a replay. Raises `TypeError` or `ValueError`
    for an invalid option. Outside `agent_scope` the agent is an ordinary agent, but in a flow it raises `DurableError`.
    """

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="Durable",
        durable_unit_noun="step",
        durable_container_noun="durable scope",
        codec=JSON_CODEC,
        serialization_failure=_unrecordable,
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        wrapped_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        journal_discovery=True,
        tool_config_key=KEY,
    )

    def __init__(
        self,
        *,
        model: StepOptions | None = None,
        tool: StepOptions | None = None,
        approvals: Approvals | None = None,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._model_options: Final = check_step_options({} if model is None else model)
        self._tool_options: Final = check_step_options({} if tool is None else tool)
        for option in ("at_most_once", "recover"):
            if option in self._model_options:
                raise ValueError(f"{option} is for tools: a model request has no effect that must not happen twice")
        self._approvals: Final = check_approvals({} if approvals is None else approvals)

    @property
    def in_durable_context(self) -> bool:
        return scope_here() is not None

    def get_durable_operation_backend(self) -> StepBackend:
        return StepBackend(
            agent_name=self.name or "agent",
            config=RoleBasedOperationConfig[Mapping[str, Any]](
                model=self._model_options, event={}, capability={}, tool=self._tool_options, resolve_tool=self._options_of_tool
            ),
        )

    def _options_of_tool(
        self, operation_id: DurableOperationId, tool: object | None, tool_name: str
    ) -> Mapping[str, Any] | Literal[False]:
        found = _said_by(None if tool is None else cast("ToolsetTool[Any]", tool).tool_def)
        return False if found is False else {**self._tool_options, **found[0]}

    async def before_model_request(
        self, ctx: RunContext[AgentDepsT], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if scope_here() is not None:
            for tool in request_context.model_request_parameters.function_tools:
                _said_by(tool)  # raises for invalid metadata, before the model is asked
        return await super().before_model_request(ctx, request_context)

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        if (scope := scope_here()) is None:
            _refuse_in_flow(self.name)
            return await handler()
        with ExitStack() as stack:
            stack.enter_context(scope.agent_run())
            stack.enter_context(replay_scope())
            stack.enter_context(external_event_scope(EventWaiter(scope)))
            if ctx.agent is not None:  # keep results and events in the order of the calls, whichever tool is faster
                agent = cast("AbstractAgent[Any, Any]", ctx.agent)
                stack.enter_context(agent.parallel_tool_call_execution_mode("parallel_ordered_events"))
            return await super().wrap_run(ctx, handler=handler)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        if (scope := scope_here()) is None:
            return None

        def approvals_for(call: ToolCallPart) -> Approvals:
            tools = (ctx.tool_manager.tools if ctx.tool_manager is not None else None) or {}
            tool = tools.get(call.tool_name)
            found = _said_by(None if tool is None else tool.tool_def)
            return (found and found[1]) or self._approvals

        return await answer_calls(scope, ctx, requests, approvals_for)

    def get_default_run_id(self) -> str | None:
        scope = scope_here()
        return None if scope is None else scope.agent_run_id

    def get_default_conversation_id(self, run_id: str) -> str | None:
        return None if scope_here() is None else conversation_id_from_run_id(run_id)

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        if (scope := scope_here()) is None:
            return None
        return await scope.runner.step("started", _now)


def _now() -> datetime:
    return datetime.now(UTC)


def _said_by(tool: ToolDefinition | None) -> tuple[StepOptions, Approvals | None] | Literal[False]:
    """Return a tool's options of steps and approvals, or False. Raises `TypeError` or `ValueError` for invalid ones."""
    metadata = None if tool is None else (tool.metadata or {}).get(KEY)
    if tool is None or metadata is None:
        return {}, None
    if metadata is False:
        return False
    try:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"expected options of a step, or False, not {metadata!r}")
        own = cast(StepOptions, {option: value for option, value in metadata.items() if option != APPROVALS})
        return check_step_options(own), check_approvals(metadata[APPROVALS]) if APPROVALS in metadata else None
    except (TypeError, ValueError) as error:
        raise type(error)(f"the metadata {KEY!r} of the tool {tool.name!r}: {error}") from error


def _refuse_in_flow(name: str | None) -> None:
    """Raise `DurableError` for an agent that runs in a flow without a scope: none of its steps would be recorded."""
    if in_step():
        return
    try:
        runner = current_runner()
    except DurableError:
        return
    raise DurableError(
        f"agent {name!r} runs in the flow of run {runner.run_id!r} outside agent_scope, where its steps are not recorded;"
        " use run_agent(runner, 'a-name', agent, prompt)"
    )
