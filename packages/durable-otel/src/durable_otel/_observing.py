"""Gauges of a store: runs by state, and pending approvals."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter, get_meter_provider

from durable_core import Store
from durable_core.engine import Counts, count
from durable_core.options import duration
from durable_core.store import check_store

from ._telling import NAME, VERSION, check_provider

_logger: Final = logging.getLogger("durable_otel")


@asynccontextmanager
async def observe(
    store: Store, meter_provider: MeterProvider | None = None, *, every: float | timedelta = 60
) -> AsyncIterator[None]:
    """Count the runs of a store now and every `every` seconds, and report them until the block ends.

    The gauges are `durable.runs` by flow and state, `durable.approvals.waiting`, and `durable.approvals.oldest_age` in seconds.
    They cover the whole store, so one process that observes it is enough. If several stores are observed with one provider, the
    gauges report the sum. Counting reads the logs of runs that have not ended; 100,000 runs take a second or two. While a store
    can't be read, that is logged, and nothing is reported for it.

    Raises `TypeError` for an invalid store or provider, and `ValueError` if `every` is 0 or less.
    """
    check_store(store)
    check_provider("meter_provider", meter_provider, MeterProvider)
    seconds = duration("every", every, zero=False)
    gauges = _gauges_of(meter_provider or get_meter_provider())
    observed = _Observed(store)
    await observed.count()
    gauges.observed.append(observed)
    counting = asyncio.create_task(observed.count_on(seconds))
    try:
        yield
    finally:
        gauges.observed.remove(observed)
        counting.cancel()
        with suppress(asyncio.CancelledError):
            await counting


class _Observed:
    """A store and its last counts; None while they are unknown."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self.counted: Counts | None = None

    async def count(self) -> None:
        try:
            self.counted = await count(self._store)
        except Exception:
            self.counted = None
            _logger.exception("the runs of a store could not be counted")

    async def count_on(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.count()


class _Gauges:
    """The gauges of one provider. Made once: an SDK accepts one instrument for each name, and takes no callbacks later."""

    def __init__(self, meter: Meter) -> None:
        self.observed: Final[list[_Observed]] = []
        meter.create_observable_gauge("durable.runs", [self._runs], "{run}", "Runs by flow and state.")
        meter.create_observable_gauge(
            "durable.approvals.waiting", [self._approvals], "{approval}", "Approvals that wait for people."
        )
        meter.create_observable_gauge(
            "durable.approvals.oldest_age", [self._oldest], "s", "How long the oldest of them has waited."
        )

    def _counted(self) -> list[Counts]:
        return [each.counted for each in [*self.observed] if each.counted is not None]

    def _runs(self, _: CallbackOptions) -> Iterable[Observation]:
        runs = sum((Counter(counts.runs) for counts in self._counted()), Counter())
        for (flow, state), number in runs.items():
            yield Observation(number, {"durable.flow.name": flow, "durable.run.state": state})

    def _approvals(self, _: CallbackOptions) -> Iterable[Observation]:
        if counted := self._counted():
            yield Observation(sum(counts.approvals for counts in counted))

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        if counted := self._counted():
            now = datetime.now(UTC)
            oldest = min((counts.oldest for counts in counted if counts.oldest is not None), default=now)
            yield Observation(max((now - oldest).total_seconds(), 0.0))


_known: Final[WeakKeyDictionary[MeterProvider, _Gauges]] = WeakKeyDictionary()


def _gauges_of(provider: MeterProvider) -> _Gauges:
    """Return the gauges of a provider. They are made once."""
    if (gauges := _known.get(provider)) is None:
        gauges = _known[provider] = _Gauges(get_meter(NAME, VERSION, provider))
    return gauges
