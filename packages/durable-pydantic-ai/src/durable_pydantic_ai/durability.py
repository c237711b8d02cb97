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
from pydantic_ai.models import Model
from pydantic_ai.tools import AgentDepsT, DeferredToolRequests, DeferredToolResults
from pydantic_ai.toolsets import ToolsetTool

from durable_core import DurableError, StepOptions, UnrecordableValue, check_step_options, current_runner, in_step

from ._deciding import EventWaiter, answer_calls
from ._scopes import scope_here
from ._steps import StepBackend
from .approvals import Approvals

KEY: Final = "durable"
APPROVALS: Final = "approvals"


def _unrecordable(error: Exception) -> BaseException:
    return UnrecordableValue(f"what a model or a tool returned has no JSON, so it can't be recorded: {error}")


class Durability(BaseDurabilityCapability[AgentDepsT]):
    """Makes each model request, tool call and MCP call of an agent a step, where the agent runs in `agent_scope`.

    `Agent(…, capabilities=[Durability()])`; the agent needs a name, and its toolsets need ids. `model` and `tool` are options of
    the steps: attempts, delays, timeouts. A tool's metadata says what holds for it alone, in place of `tool`:
    `{"durable": {"at_most_once": True}}`; `{"durable": False}` calls it as it is, for a tool that uses `current_runner()` itself;
    `{"durable": {"approvals": Approvals(quorum=2)}}` says who decides on its calls, in place of `approvals`. `models` are models
    that runs may choose by name. `event_stream_handler` gets events as they come, on the first run.

    What tools change on the dependencies is not recorded, and doesn't happen on a replay. Raises `TypeError` or `ValueError` for
    an option that can't be. Outside `agent_scope` the agent is an ordinary one, except in a flow: `DurableError`.
    """

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="durable",
        durable_unit_noun="step",
        durable_container_noun="agent_scope",
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
        if approvals is not None and not isinstance(approvals, Approvals):
            raise TypeError(f"approvals must be Approvals(…), not {approvals!r}")
        self._model_options: Final = check_step_options(model or {})
        self._tool_options: Final = check_step_options(tool or {})
        for option in ("at_most_once", "recover"):
            if option in self._model_options:
                raise ValueError(f"{option} is for tools: a model request has no effect that must not happen twice")
        self._approvals: Final = approvals or Approvals()

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
        metadata = _metadata(cast("ToolsetTool[Any] | None", tool))
        if metadata is False:
            return False
        own = {option: value for option, value in metadata.items() if option != APPROVALS}
        try:
            return {**self._tool_options, **check_step_options(cast(StepOptions, own))}
        except (TypeError, ValueError) as error:
            error.add_note(f"in the metadata {KEY!r} of the tool {tool_name!r}")
            raise

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        if (scope := scope_here()) is None:
            _refuse_in_flow(self.name)
            return await handler()
        with ExitStack() as stack:
            stack.enter_context(scope.agent_run())
            stack.enter_context(replay_scope())
            stack.enter_context(external_event_scope(EventWaiter(scope)))
            if ctx.agent is not None:  # results and events in the order of the calls, whichever tool was faster
                agent = cast("AbstractAgent[Any, Any]", ctx.agent)
                stack.enter_context(agent.parallel_tool_call_execution_mode("parallel_ordered_events"))
            return await super().wrap_run(ctx, handler=handler)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        if (scope := scope_here()) is None:
            return None

        def approvals_for(call: ToolCallPart) -> Approvals:
            tools = ctx.tool_manager.tools if ctx.tool_manager is not None else None
            metadata = _metadata((tools or {}).get(call.tool_name))
            own = metadata.get(APPROVALS) if metadata else None
            if own is not None and not isinstance(own, Approvals):
                raise TypeError(f"{APPROVALS!r} in the metadata of the tool {call.tool_name!r} must be Approvals(…), not {own!r}")
            return own or self._approvals

        return await answer_calls(scope, ctx, requests, approvals_for)

    def get_default_run_id(self) -> str | None:
        scope = scope_here()
        return None if scope is None else scope.next_run_id

    def get_default_conversation_id(self, run_id: str) -> str | None:
        return None if scope_here() is None else conversation_id_from_run_id(run_id)

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        if (scope := scope_here()) is None:
            return None
        return await scope.runner.step(f"started-{scope.next_run_id.rpartition('/')[2]}", _now)


def _now() -> datetime:
    return datetime.now(UTC)


def _metadata(tool: ToolsetTool[Any] | None) -> Mapping[str, Any] | Literal[False]:
    """Return what a tool says of itself. Raises `TypeError` for what is neither options nor False."""
    found = None if tool is None else (tool.tool_def.metadata or {}).get(KEY)
    if found is None:
        return {}
    if found is False or isinstance(found, Mapping):
        return cast("Mapping[str, Any] | Literal[False]", found)
    name = tool.tool_def.name if tool is not None else ""
    raise TypeError(f"the metadata {KEY!r} of the tool {name!r} must be options of a step or False, not {found!r}")


def _refuse_in_flow(name: str | None) -> None:
    """Refuse an agent that was made to be durable and runs in a flow, but in no scope: nothing of it would be recorded."""
    if in_step():
        return
    try:
        runner = current_runner()
    except DurableError:
        return
    raise DurableError(
        f"agent {name!r} runs in the flow of run {runner.run_id!r} outside agent_scope, where nothing of it is recorded;"
        " use run_agent(runner, 'a-name', agent, prompt)"
    )
