"""What a store holds, as gauges: runs by state, and the approvals that wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from durable_core import Store
from durable_core.engine import Counts, count
from durable_core.options import duration

from ._telling import NAME, VERSION, check_provider

_logger: Final = logging.getLogger("durable_otel")


@asynccontextmanager
async def observe(
    store: Store, meter_provider: MeterProvider | None = None, *, every: float | timedelta = 60
) -> AsyncIterator[None]:
    """Count the runs of a store now and every so many seconds, and report them until the block is left.

    Gauges are `durable.runs` by flow and state, `durable.approvals.waiting`, and `durable.approvals.oldest_age` in seconds. They
    are of the whole store: one process that observes it is enough. Counting reads the logs of the runs that have not ended;
    100,000 runs take a second or two. While the store can't be read, that is logged and nothing is reported.

    Raises `TypeError` for what is no provider, `ValueError` for an `every` of 0 or less.
    """
    check_provider("meter_provider", meter_provider, MeterProvider)
    seconds = duration("every", every, zero=False)
    observed = _Observed(get_meter(NAME, VERSION, meter_provider))
    await observed.count(store)
    counting = asyncio.create_task(observed.count_on(store, seconds))
    try:
        yield
    finally:
        counting.cancel()
        with suppress(asyncio.CancelledError):
            await counting
        observed.counted = None


class _Observed:
    """What was counted last; None while nothing is reported."""

    def __init__(self, meter: Meter) -> None:
        self.counted: Counts | None = None
        meter.create_observable_gauge("durable.runs", [self._runs], "{run}", "Runs by flow and state.")
        meter.create_observable_gauge(
            "durable.approvals.waiting", [self._approvals], "{approval}", "Approvals that wait for people."
        )
        meter.create_observable_gauge(
            "durable.approvals.oldest_age", [self._oldest], "s", "How long the oldest of them has waited."
        )

    async def count(self, store: Store) -> None:
        try:
            self.counted = await count(store)
        except Exception:
            self.counted = None
            _logger.exception("the runs of a store could not be counted")

    async def count_on(self, store: Store, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.count(store)

    def _runs(self, _: CallbackOptions) -> Iterable[Observation]:
        runs = {} if self.counted is None else self.counted.runs
        for (flow, state), number in runs.items():
            yield Observation(number, {"durable.flow.name": flow, "durable.run.state": state})

    def _approvals(self, _: CallbackOptions) -> Iterable[Observation]:
        if self.counted is not None:
            yield Observation(self.counted.approvals)

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        if self.counted is not None:
            oldest = self.counted.oldest
            age = 0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds()
            yield Observation(max(age, 0.0))
