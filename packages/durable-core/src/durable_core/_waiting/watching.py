"""Watching a run from outside: its end, and what it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from durable_core._log import news
from durable_core._log.chain import FLOW, decided
from durable_core._log.known import check_own, known_run
from durable_core._log.notes import ids_in
from durable_core._log.watches import WATCHED_SECONDS, watching
from durable_core._running.outcome import ended_by
from durable_core._running.run import poll_seconds
from durable_core._system.waits import first_of
from durable_core.clock import Clock, SystemClock
from durable_core.errors import Refused
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.flows import state_of


async def the_end(store: Store, run_id: str, timeout: float | None, clock: Clock | None) -> StepRecord:
    """Wait until the run has ended, and return its last `$flow` entry; raise its failure, as `run` does."""
    clock = clock or SystemClock()
    deadline = None if timeout is None else clock.monotonic() + timeout
    heard, run_news = asyncio.Event(), news.news_of(run_id)
    with run_news.calling(heard.set), watching(store, run_id, heard.set) as watch:  # a runner here tells when it leaves
        while not decided(flow := await store.get(run_id, FLOW)):
            if flow is None:
                await known_run(store, run_id)
                raise Refused(f"run {run_id!r} has no flow, so its end is not recorded")
            pause = WATCHED_SECONDS if watch.listens else poll_seconds(store)
            if deadline is not None and (pause := min(pause, deadline - clock.monotonic())) <= 0:
                raise TimeoutError(f"run {run_id!r} has not ended within {timeout:g} s: its flow is {state_of(flow)}")
            await first_of(heard.wait(), clock.sleep(pause))
            heard.clear()
    if flow.status == "failure":
        names = ids_in(flow, "failed")
        raise ended_by(flow, await store.get(run_id, names[0]) if names else None)
    return flow


async def published(store: Store, run_id: str, step_id: str) -> StepRecord | None:
    """Return the newest entry that the run has published under `step_id`, or None if it has published nothing yet.

    `record.value()` is the published value. Raises `Refused` if the id belongs to a step or a wait.
    """
    check_own(store, run_id, step_id)
    return _checked(await store.get(run_id, step_id))


async def follow(store: Store, run_id: str, step_id: str) -> AsyncIterator[StepRecord]:
    """Yield each entry that the run publishes under `step_id`, beginning with the first, until the run has ended.

    The run need not exist yet. A run without a flow has no end, so leave the loop yourself. Entries of a run in this process
    come at once, those of another process within two seconds, on S3 within twenty. If the store has `watch`, the end of the
    run is noticed at once. Raises `Refused` if the id belongs to a step or a wait.
    """
    check_own(store, run_id, step_id)
    seconds = poll_seconds(store)  # also where the store has `watch`, which doesn't tell what the run itself appends
    last = -1
    with _hearing(store, run_id) as heard:
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


async def looks(store: Store, run_id: str, *, clock: Clock | None = None) -> AsyncIterator[Sequence[StepRecord]]:
    """Yield the run's entries now and at every later look, whether they are new or not, until its flow has ended.

    The last entries contain its end. A run without a flow has no end, so leave the loop yourself. A look comes when somebody
    acts on the run, if the store has `watch`, and every two seconds, on S3 every twenty. Reading a long log takes at most a tenth
    of the time. Raises `NotFound` for a run that doesn't exist.
    """
    clock = clock or SystemClock()
    with _hearing(store, run_id) as heard:
        while True:
            heard.clear()
            began = clock.monotonic()
            flow = await store.get(run_id, FLOW)  # before the others: all that it ends is then there
            entries = await known_run(store, run_id)
            took = clock.monotonic() - began
            yield entries
            if decided(flow):
                return
            await clock.sleep(9 * took)
            await first_of(heard.wait(), clock.sleep(poll_seconds(store)))


@contextmanager
def _hearing(store: Store, run_id: str) -> Iterator[asyncio.Event]:
    """Set an event whenever somebody acts on the run or it publishes something, as far as that is notified."""
    heard = asyncio.Event()
    with ExitStack() as stack:
        for name in (run_id, news.published(run_id)):
            stack.enter_context(news.news_of(name).calling(heard.set))
        stack.enter_context(watching(store, run_id, heard.set))
        yield heard


async def _between(store: Store, newest: StepRecord, last: int) -> Sequence[StepRecord]:
    """Return the entries after `last`, up to the newest one."""
    if newest.revision == last + 1:
        return [newest]
    entries = [record for record in await store.list(newest.run_id) if record.step_id == newest.step_id]
    return sorted((record for record in entries if record.revision > last), key=lambda record: record.revision)


def _checked(record: StepRecord | None) -> StepRecord | None:
    if record is not None and record.kind != "published":
        raise Refused(f"{record.step_id!r} of run {record.run_id!r} was not published: it is of kind {record.kind!r}")
    return record
