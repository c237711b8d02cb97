"""Where an agent's steps go: the scope of a runner, and the run of an agent in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final, TypeVar

from pydantic_ai import AgentRunResult, RunContext
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.messages import UserContent

from durable_core import DurableError, Runner

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,60}")


class AgentScope:
    """The steps of the agent runs in one scope of a runner: `triage/model-1`, and of a second run `triage/run-2/model-1`."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._scope: Final = runner.scope(name)
        self._runs = 0
        self._is_running = False
        self._used: Counter[str] = Counter()
        self.runner = self._scope

    @property
    def next_run_id(self) -> str:
        """The id that the next run of an agent gets from pydantic-ai, the same on every replay."""
        return f"{self.runner.run_id}/{self._scope.prefix}{self._runs + 1}"

    @contextmanager
    def agent_run(self) -> Generator[None]:
        """Give the steps of one agent run ids of their own. Raises `DurableError` while another run goes on here."""
        if self._is_running:
            raise DurableError(
                f"two agents run at once in scope {self._scope.prefix[:-1]!r}, whose steps could not be told apart on a replay;"
                " give each run a scope of its own: `run_agent(runner, 'another-name', …)`"
            )
        self._runs += 1
        self._used.clear()
        self.runner = self._scope if self._runs == 1 else self._scope.scope(f"run-{self._runs}")
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    def step_id(self, what: str, ctx: RunContext[Any] | None, call_id: str | None = None) -> str:
        """Make the id of what is done in a turn of the model; done again in the same turn, it gets a number."""
        parts = [plain(what)]
        if ctx is not None:
            parts.append(str(ctx.run_step))
            call_id = call_id or ctx.tool_call_id
        if call_id is not None:
            parts.append(plain(call_id))
        step_id = "-".join(parts)
        self._used[step_id] += 1
        return step_id if (times := self._used[step_id]) == 1 else f"{step_id}~{times}"


_here: Final[ContextVar[AgentScope | None]] = ContextVar("durable_agent_scope", default=None)


def scope_here() -> AgentScope | None:
    """Return the scope that agents run in where this is called."""
    return _here.get()


@contextmanager
def agent_scope(runner: Runner, name: str) -> Generator[None]:
    """Make what agents do in this block steps of `runner`, with ids that begin with `name`: `triage/model-1`.

    For `agent.run`, `agent.iter` and the like of an agent that has the capability `Durability`; others are as ever. Two runs of
    agents at once need a scope each: `DurableError`. Raises `ValueError` for a name that holds a "/" or begins with "$".
    """
    if not isinstance(runner, Runner):
        raise TypeError(f"agent_scope takes a Runner, not {runner!r}; in a flow that is its first parameter")
    with _entered(AgentScope(runner, name)):
        yield


@contextmanager
def _entered(scope: AgentScope | None) -> Generator[None]:
    token = _here.set(scope)
    try:
        yield
    finally:
        _here.reset(token)


def outside_scopes() -> Any:
    """Let an agent that runs inside a step be an ordinary one: the step records what comes of it."""
    return _entered(None)


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

    A replay returns an equal result, and asks no model. `options` are those of `agent.run`. Raises `TypeError` for an agent
    without the capability `Durability`, before anything runs; `StepFailed` once a model request or a tool has failed for good;
    `RunSuspended` while it waits for a person longer than the runner's `wait_limit`.
    """
    from .durability import Durability

    if not isinstance(agent, AbstractAgent):
        raise TypeError(f"run_agent takes an agent of pydantic-ai, not {agent!r}")
    if Durability.from_agent(agent) is None:
        raise TypeError(f"agent {agent.name!r} is not durable; make it with Agent(…, capabilities=[Durability()])")
    with agent_scope(runner, name):
        return await agent.run(prompt, deps=deps, **options)


def plain(text: str) -> str:
    """Return text that ids may hold, the same for the same text: models and providers make up the ids of calls."""
    return text if _PLAIN.fullmatch(text) else f"x{blake2b(text.encode(errors='replace'), digest_size=8).hexdigest()}"
