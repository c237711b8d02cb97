"""The scope in which an agent's steps are recorded."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic_ai import AgentRunResult
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.messages import UserContent

from durable_core import NestedStep, Runner, current_step, in_step

from ._scopes import AgentScope, entered
from .durability import Durability

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")


@contextmanager
def agent_scope(runner: Runner, name: str) -> Generator[None]:
    """Make what agents do in this block steps of `runner`, with ids that begin with `name`, such as `triage/model-1`.

    It applies to `agent.run`, `agent.iter` and so on of agents with the capability `Durability`, and not to other agents. Raises
    `DurableError` if two agents run at the same time in one scope, and `ValueError` for a name that contains a "/" or begins
    with "$".
    """
    if not isinstance(runner, Runner):
        raise TypeError(f"agent_scope takes a Runner, not {runner!r}; in a flow that is its first parameter")
    scope = AgentScope(runner, name)
    if in_step() and current_step().run_id == runner.run_id:
        raise NestedStep(
            f"agent {name!r} was called inside step {current_step().step_id!r}, where it can't make steps of its own;"
            " if the step is the call of a tool, give the tool metadata={'durable': False}"
        )
    with entered(scope):
        yield


async def run_agent(
    runner: Runner,
    name: str,
    agent: AbstractAgent[DepsT, OutputT],
    prompt: str | Sequence[UserContent] | None = None,
    *,
    deps: DepsT = None,  # type: ignore[assignment]  # as in pydantic-ai: an agent without dependencies takes None
    **options: Any,
) -> AgentRunResult[OutputT]:
    """Run an agent whose model requests and tool calls are steps of `runner`, with ids that begin with `name`.

    A replay returns an equal result without asking a model. `options` are those of `agent.run`. Raises `TypeError` before
    anything runs if the agent lacks the capability `Durability`, `StepFailed` if a model request or a tool has failed for good,
    and `RunSuspended` if it waits for a person longer than the runner's `wait_limit`.
    """
    if not isinstance(agent, AbstractAgent):
        raise TypeError(f"run_agent needs an agent of pydantic-ai, not {agent!r}")
    if Durability.from_agent(agent) is None:
        raise TypeError(f"agent {agent.name!r} is not durable; make it with Agent(…, capabilities=[Durability()])")
    with agent_scope(runner, name):
        return await agent.run(prompt, deps=deps, **options)
