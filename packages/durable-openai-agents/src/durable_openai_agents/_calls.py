"""The calls of one agent run: their step ids and their options."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final, Literal, TypeVar

from durable_core import Approvals, Runner, StepOptions, StepReused

from .options import APPROVALS, ToolOptions

T = TypeVar("T")

inside_tool: Final[ContextVar[Calls | None]] = ContextVar("durable_openai_agents_tool", default=None)
"""The agent run of the tool call that is running as a step here. None elsewhere."""


class Calls:
    """State shared by all model requests and tool calls of one agent run.

    An agent run sends one model request at a time. The number of the newest request distinguishes calls if a provider repeats
    their ids.
    """

    def __init__(
        self,
        runner: Runner,
        model: StepOptions,
        tool: StepOptions,
        tools: Mapping[str, ToolOptions | Literal[False]],
    ) -> None:
        self.runner: Final = runner
        self.model: Final = model
        self.tools: Final = tools
        self.edited: Final[dict[str, str]] = {}
        """Arguments that a person changed, by the step id of the call."""
        self._tool = tool
        self._requests = 0
        self._running: set[asyncio.Task[Any]] = set()

    def next_request(self) -> str:
        """Return the step id of the next model request."""
        self._requests += 1
        return f"{self._requests}-model"

    def step_id(self, tool: str, call_id: str) -> str:
        """Return the step id of a tool call in the newest model response."""
        named = f"{self._requests}-{tool}-{call_id}"
        if len(named) <= 128 and named.isascii() and named.isprintable():
            return named
        return f"{self._requests}-{blake2b(named.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"

    def reused(self) -> StepReused:
        """Make the error for a second agent run with the same name."""
        return StepReused(
            f"an agent ran as {self.runner.prefix[:-1]!r} before in this run, and its steps could not be told apart on a replay;"
            " give each agent run a name of its own: run_agent(runner, 'another-name', …)"
        )

    def is_step(self, tool: str) -> bool:
        """Return True if the calls of a tool are steps."""
        return self.tools.get(tool) is not False

    def options(self, tool: str) -> dict[str, Any]:
        """Return the options of a tool's steps."""
        options: dict[str, Any] = {"name": tool, **self._tool, **(self.tools.get(tool) or {})}
        options.pop(APPROVALS, None)
        return options

    def approvals(self, tool: str) -> Approvals | None:
        """Return who decides on a tool's calls. None if no option says it."""
        return (self.tools.get(tool) or ToolOptions()).get(APPROVALS)

    async def shielded(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a tool call, and let it continue if the SDK cancels it because another call of the same turn failed."""
        task = asyncio.create_task(call)
        self._running.add(task)
        return await asyncio.shield(task)

    def cancel(self) -> None:
        """Cancel the running tool calls, because the agent run itself was cancelled."""
        for task in self._running:
            task.cancel()

    async def finish(self) -> None:
        """Wait until every tool call that has begun is recorded."""
        if self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
