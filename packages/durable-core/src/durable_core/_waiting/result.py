"""Waiting from outside until a run has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from durable_core._log.chain import FLOW, decided
from durable_core._log.known import known_run
from durable_core._log.news import news_of
from durable_core._log.notes import ids_in
from durable_core._running.outcome import failed_before, to_retry
from durable_core._running.run import poll_seconds
from durable_core.clock import Clock, SystemClock
from durable_core.errors import Refused, StepFailed
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.flows import state_of


async def the_end(store: Store, run_id: str, timeout: float | None, clock: Clock | None) -> StepRecord:
    """Wait until the run has ended, and return the entry that says so; raise its failure, as `run` does."""
    clock = clock or SystemClock()
    flow = await _ended(store, run_id, None if timeout is None else clock.monotonic() + timeout, timeout, clock)
    if flow.status == "success":
        return flow
    names = ids_in(flow, "failed")
    step = await store.get(run_id, names[0]) if names else None
    failed = flow if step is None or step.status != "failure" else step
    if state_of(flow) == "cancelled":
        raise StepFailed(flow)
    raise failed_before(failed, to_retry(failed))


async def _ended(store: Store, run_id: str, deadline: float | None, timeout: float | None, clock: Clock) -> StepRecord:
    heard, news = asyncio.Event(), news_of(run_id)
    with news.calling(heard.set):  # a runner in this process tells when it leaves
        while True:
            heard.clear()
            flow = await store.get(run_id, FLOW)
            if decided(flow):
                return flow
            if flow is None:
                await known_run(store, run_id)
                raise Refused(f"run {run_id!r} has no flow, so nothing tells when it has ended")
            left = None if deadline is None else deadline - clock.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"run {run_id!r} has not ended within {timeout:g} s: its flow is {state_of(flow)}")
            pause = poll_seconds(store) if left is None else min(poll_seconds(store), left)
            await _first(heard.wait(), clock.sleep(pause))


async def _first(*pauses: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(pause) for pause in pauses]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
