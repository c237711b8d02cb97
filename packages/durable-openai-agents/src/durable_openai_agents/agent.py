"""Runs an agent in a run, so that it repeats nothing that it did before a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from agents import Agent, RunConfig, RunHooks, RunResult, TResponseInputItem
from agents import Runner as AgentRunner

from durable_core import DurableError, NestedStep, Runner, StepOptions, current_step, in_step

from ._agents import Wrapping
from ._approvals import decide
from ._calls import Calls
from ._models import RecordedModel, RecordedProvider
from .options import ToolOptions, check_options


async def run_agent(
    runner: Runner,
    name: str,
    agent: Agent[Any],
    prompt: str | list[TResponseInputItem],
    *,
    model: StepOptions | None = None,
    tool: StepOptions | None = None,
    tools: Mapping[str, ToolOptions | Literal[False]] | None = None,
    context: Any = None,
    max_turns: int = 10,
    hooks: RunHooks[Any] | None = None,
    run_config: RunConfig | None = None,
) -> RunResult:
    """Run an agent and the agents to which it hands over. Every model request and every tool call is a step of the run.

    The steps are in the scope `name`, which must differ for each agent run in a run. `model` are the options of all model
    requests, and `tool` those of all tool calls. `tools` has the options of single tools by name, which replace `tool`; with
    False, a tool's calls are not steps: it runs again on every replay, and may use the runner itself. A call that needs approval
    is an approval of the run, which shows agent, tool and arguments. A `value` that a person gives replaces the arguments. The
    model gets the reason of a rejection.

    On a replay, the SDK runs again with the recorded outcomes. `context`, and what tools change in it, is not recorded. The
    agents of the result are copies: compare them by name. `context`, `max_turns`, `hooks` and `run_config` are the SDK's.

    Raises what the SDK raises. Raises `StepFailed` if a model request failed, if a tool call failed and its tool has
    `failure_error_function=None`, or if nobody decided an approval in time; `StepDrift` if a recorded response can no longer be
    read; and other `DurableError`s of the runner, which the model doesn't see. Before anything runs, raises `TypeError` or
    `ValueError` for invalid options, for a tool that can't be a step, and for a name in `tools` that no agent's tool has.
    """
    if not isinstance(runner, Runner):
        raise TypeError(f"run_agent takes a Runner, not {runner!r}; in a flow that is its first parameter")
    if not isinstance(prompt, str | list):
        raise TypeError(f"the prompt of run_agent must be a str, or a list of the SDK's input items, not {prompt!r}")
    model = {} if model is None else model
    tool = {} if tool is None else tool
    tools = {} if tools is None else tools
    check_options(model, tool, tools)
    if in_step() and current_step().run_id == runner.run_id:
        raise NestedStep(
            f"run_agent({name!r}) was called inside step {current_step().step_id!r}, where it can't make steps of its own;"
            " if the step is the call of a tool, pass tools={'its_name': False}"
        )
    calls = Calls(runner.scope(name), model, tool, tools)
    durable = Wrapping(calls).agent(agent)
    given = run_config or RunConfig()
    config = replace(
        given,
        model=RecordedModel(given.model, calls) if given.model is not None and not isinstance(given.model, str) else given.model,
        model_provider=RecordedProvider(given.model_provider, calls),
    )
    try:
        result = await AgentRunner.run(durable, prompt, context=context, max_turns=max_turns, hooks=hooks, run_config=config)
        while result.interruptions:
            state = result.to_state()
            await decide(calls, state, result.interruptions)
            result = await AgentRunner.run(durable, state, max_turns=max_turns, hooks=hooks, run_config=config)
        return result
    except asyncio.CancelledError:
        calls.cancel()
        raise
    except Exception as error:
        if (failure := _durable(error)) is None or failure is error:
            raise
    finally:
        await calls.finish()
    raise failure  # without the SDK's wrapping, so that callers catch `StepFailed` as from any step


def _durable(error: BaseException | None) -> DurableError | None:
    """Return this error if it is the runner's, or else the runner's error that caused it. None if there is none."""
    while error is not None and not isinstance(error, DurableError):
        error = error.__cause__
    return error
