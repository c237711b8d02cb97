"""Reading what a run publishes, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress

from durable_core._log import news
from durable_core._log.chain import FLOW, decided
from durable_core._running.run import poll_seconds
from durable_core._system.ids import check_id, check_own_id
from durable_core.errors import Refused
from durable_core.record import StepRecord
from durable_core.store import Store, check_store


async def published(store: Store, run_id: str, step_id: str) -> StepRecord | None:
    """Return the newest entry that the run has published under `step_id`, or None if it has published nothing yet.

    `record.value()` is what was published. Raises `Refused` where the id is a step's or a wait's.
    """
    _check(store, run_id, step_id)
    return _checked(await store.get(run_id, step_id))


async def follow(store: Store, run_id: str, step_id: str) -> AsyncIterator[StepRecord]:
    """Yield each entry that the run publishes under `step_id`, from the first one, and end when the run has ended.

    The run need not have begun. A run without a flow has no end: this goes on until nobody asks any more. An entry of a run in
    this process comes at once; one of another process within the store's polling: two seconds, on S3 twenty. Raises `Refused`
    where the id is a step's or a wait's.
    """
    _check(store, run_id, step_id)
    heard = asyncio.Event()
    seconds = poll_seconds(store)
    last = -1
    with ExitStack() as stack:
        for name in (run_id, news.published(run_id)):
            stack.enter_context(news.news_of(name).calling(heard.set))
        while True:
            heard.clear()
            flow = await store.get(run_id, FLOW)  # before the others: what the run had published is then there
            newest = _checked(await store.get(run_id, step_id))
            if newest is not None and newest.revision > last:
                for record in await _between(store, newest, last):
                    last = record.revision
                    yield record
            if decided(flow):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await heard.wait()


async def _between(store: Store, newest: StepRecord, last: int) -> Sequence[StepRecord]:
    """Return the entries up to the newest one that come after `last`."""
    if newest.revision == last + 1:
        return [newest]
    entries = [record for record in await store.list(newest.run_id) if record.step_id == newest.step_id]
    return sorted((record for record in entries if record.revision > last), key=lambda record: record.revision)


def _check(store: Store, run_id: str, step_id: str) -> None:
    check_store(store)
    check_id("run_id", run_id)
    check_own_id("step_id", step_id)


def _checked(record: StepRecord | None) -> StepRecord | None:
    if record is not None and record.kind != "published":
        raise Refused(f"{record.step_id!r} of run {record.run_id!r} is nothing that was published, but of kind {record.kind!r}")
    return record
