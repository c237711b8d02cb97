"""durable, with runs that are started and left to a worker, as other systems' queues do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from harness import STEPS, Peer, Settled, flows, held, main, work

from durable_core import Runner, Store, flow, open_store
from durable_worker import Worker


@flow
async def ten(runner: Runner, name: str) -> None:
    flows.begin(name)
    for number in range(STEPS):
        await runner.step(f"step-{number}", work, number)
    if flows.hold():
        await held()
    flows.end(name)


class Runs(Settled):
    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(ten.start(self._store, run_id=name, name=name) for name in names))
        await flows.all_ended.wait()

    async def resume(self, names: Sequence[str]) -> None:
        await flows.all_ended.wait()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    async with open_store(url) as store, Worker(store, [ten], concurrency=200, visibility_timeout=5):
        yield Runs(store)


if __name__ == "__main__":
    main(opened)
