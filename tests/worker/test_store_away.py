"""A store that is away for a while keeps no run from going on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from durable_core import Runner, control, flow
from durable_core.errors import StoreError
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


async def test_a_sweep_that_failed_is_tried_again_soon() -> None:
    """A worker that begins while its store is away sweeps once that is back, and not ten minutes later."""
    clock = FakeClock()

    class Away(MemoryStore):
        async def flows(self, *args: Any, **options: Any) -> Any:
            if clock.monotonic() < 20:
                raise StoreError("the store is away")
            return await super().flows(*args, **options)

    @flow(clock=clock)
    async def order(runner: Runner) -> str:
        return await runner.step("charge", lambda: "charged")

    store = Away(clock=clock)
    await order.start(store, "order-7")
    lost = await store.take_wakeups(["order"], limit=9, visibility_timeout=timedelta(minutes=1))
    await store.clear_wakeups(lost)
    async with Worker(store, [order], clock=clock):
        assert await control.result(store, "order-7", timeout=120, clock=clock) == "charged"
