"""durable, as a program writes it: a Runner under the run's lock, and ten steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from harness import STEPS, Peer, Settled, flows, held, main, work

from durable_core import Runner, Store, open_store


class Runs(Settled):
    def __init__(self, store: Store) -> None:
        self._store = store

    async def _one(self, name: str) -> None:
        flows.begin(name)
        async with Runner(self._store, run_id=name) as runner:
            for number in range(STEPS):
                await runner.step(f"step-{number}", work, number)
            if flows.hold():
                await held()
        flows.end(name)

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._one, names))

    resume = run


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    async with open_store(url) as store:
        yield Runs(store)


if __name__ == "__main__":
    main(opened)
