"""Counting runs, no more often than necessary."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from durable_core.engine import Counts, count
from durable_core.store import Store

_FRESH_SECONDS: Final = 15.0


class Counting:
    """Counts the runs of a store. 100,000 take a second or two, so all requests within 15 seconds get the same answer."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self._task: asyncio.Task[Counts] | None = None
        self._fresh_until = 0.0

    async def now(self) -> Counts:
        """Return the last counts, or count now. If a caller stops waiting, the counting continues."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._fresh_until):
            self._task = asyncio.create_task(count(self._store))
            self._fresh_until = float("inf")
            self._task.add_done_callback(self._counted)
        return await asyncio.shield(self._task)

    def _counted(self, task: asyncio.Task[Counts]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._fresh_until = time.monotonic() + (0 if failed else _FRESH_SECONDS)


def as_text(counted: Counts) -> str:
    """Return the counts in the format of Prometheus."""
    runs = [(_label(flow), state, number) for (flow, state), number in sorted(counted.runs.items())]
    age = 0.0 if counted.oldest is None else (datetime.now(UTC) - counted.oldest).total_seconds()
    lines = [
        "# HELP durable_runs Runs by flow and state.",
        "# TYPE durable_runs gauge",
        *(f'durable_runs{{flow="{flow}",state="{state}"}} {number}' for flow, state, number in runs),
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
