"""How many runs there are, counted no more often than need be."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from durable_core import control
from durable_core.engine import state_of
from durable_core.errors import CorruptLog
from durable_core.store import Store, flows_of

_FRESH_SECONDS: Final = 15.0
_PAGE: Final = 1000


class Counted(msgspec.Struct, frozen=True):
    """What was counted."""

    runs: Mapping[tuple[str, str], int]
    """By flow and state. `started` are those that run, wait in a process, or were interrupted."""
    approvals: int
    """How many approvals wait for people."""
    oldest: datetime | None
    """When the one was asked that has waited longest."""


class Counts:
    """Counts the runs of a store: 100,000 take a second or two, so all who ask within 15 seconds get the same answer."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self._task: asyncio.Task[Counted] | None = None
        self._fresh_until = 0.0

    async def now(self) -> Counted:
        """Return what was counted last, or count now; who no longer waits leaves the counting to go on."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._fresh_until):
            self._task = asyncio.create_task(self._count())
            self._fresh_until = float("inf")
            self._task.add_done_callback(self._counted)
        return await asyncio.shield(self._task)

    def _counted(self, task: asyncio.Task[Counted]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._fresh_until = time.monotonic() + (0 if failed else _FRESH_SECONDS)

    async def _count(self) -> Counted:
        runs: Counter[tuple[str, str]] = Counter()
        asked: list[datetime] = []
        try:
            async for record in control.pending(self._store):
                asked.append(record.started_at)  # noqa: PERF401  # a comprehension would lose them all to what is raised last
        except CorruptLog:  # the pages tell of it
            pass
        index, before = flows_of(self._store), None
        if index is None:
            await self._count_logs(runs)
        while index is not None and (page := await index.flows(before=before, limit=_PAGE)):
            runs.update((flow.name, state_of(flow)) for flow in page if not flow.run_id.startswith("$"))
            before = (page[-1].started_at, page[-1].run_id)
        return Counted(runs, len(asked), min(asked, default=None))

    async def _count_logs(self, runs: Counter[tuple[str, str]]) -> None:
        try:
            async for run in control.runs(self._store):
                runs[run.flow or "", run.status] += 1
        except CorruptLog:
            pass


def as_text(counted: Counted) -> str:
    """Write what was counted as Prometheus reads it."""
    runs = [(_label(flow), state, count) for (flow, state), count in sorted(counted.runs.items())]
    age = 0.0 if counted.oldest is None else (datetime.now(UTC) - counted.oldest).total_seconds()
    lines = [
        "# HELP durable_runs Runs by flow and state.",
        "# TYPE durable_runs gauge",
        *(f'durable_runs{{flow="{flow}",state="{state}"}} {count}' for flow, state, count in runs),
        "# HELP durable_approvals_waiting Approvals that wait for people.",
        "# TYPE durable_approvals_waiting gauge",
        f"durable_approvals_waiting {counted.approvals}",
        "# HELP durable_oldest_approval_seconds How long the oldest of them has waited.",
        "# TYPE durable_oldest_approval_seconds gauge",
        f"durable_oldest_approval_seconds {max(age, 0):.0f}",
    ]
    return "\n".join([*lines, ""])


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
