"""The ids of an agent's steps, and the scope in which code is running."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final

from pydantic_ai import RunContext

from durable_core import DurableError, Runner, StepReused

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,60}")


class AgentScope:
    """Step ids for the agent runs in one scope: `triage/model-1`, and in the second run `triage/run-2/model-1`."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._scope: Final[Runner] = runner.scope(name)
        self._number = 1
        self._is_running = False
        self._used: Counter[str] = Counter()
        self.runner: Runner = self._scope
        """The scope of the present agent run, or of the next one: capabilities may make steps before it begins."""

    @property
    def agent_run_id(self) -> str:
        """The id of the agent run for pydantic-ai. It is the same on every replay."""
        return f"{self.runner.run_id}/{self._scope.prefix}{self._number}"

    @contextmanager
    def agent_run(self) -> Generator[None]:
        """Give the steps of one agent run their own ids. Raises `DurableError` if another agent is running in this scope."""
        if self._is_running:
            raise DurableError(
                f"two agents run at once in scope {self._scope.prefix[:-1]!r}, whose steps could not be told apart on a replay;"
                " give each run a scope of its own: `run_agent(runner, 'another-name', …)`"
            )
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            self._number += 1
            self._used.clear()
            self.runner = self._scope.scope(f"run-{self._number}")

    def reused(self) -> StepReused:
        """Make the error for a second scope with the same name."""
        return StepReused(
            f"an agent ran as {self._scope.prefix[:-1]!r} before in this run, and its steps could not be told apart on a replay;"
            " give each agent run a name of its own: run_agent(runner, 'another-name', …)"
        )

    def step_id(self, what: str, ctx: RunContext[Any] | None, call_id: str | None = None) -> str:
        """Return a step id for an operation in the present turn of the model. Repeated in the same turn, it gets a number."""
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
    """Return the scope of the calling code, or None."""
    return _here.get()


@contextmanager
def entered(scope: AgentScope | None) -> Generator[None]:
    """Make agents in this block run in `scope`, or in no scope."""
    token = _here.set(scope)
    try:
        yield
    finally:
        _here.reset(token)


def outside_scopes() -> AbstractContextManager[None]:
    """Make agents in this block ordinary ones. Inside a step, the step records the result."""
    return entered(None)


def plain(text: str) -> str:
    """Return the text if an id may contain it, or else a hash of it. Models and providers may send any text as a call's id."""
    return text if _PLAIN.fullmatch(text) else f"x{blake2b(text.encode(errors='replace'), digest_size=8).hexdigest()}"
