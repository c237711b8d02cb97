"""DBOS: an asyncio workflow of ten asyncio steps, started in this process; launching recovers what was pending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dbos import DBOS, SetWorkflowID
from harness import STEPS, Peer, Settled, flows, held, main, work

step = DBOS.step()(work)


@DBOS.workflow()
async def ten(name: str) -> None:
    flows.begin(name)
    for number in range(STEPS):
        await step(number)
    if flows.hold():
        await held()
    flows.end(name)


class Runs(Settled):
    async def _one(self, name: str) -> None:
        with SetWorkflowID(name):
            await ten(name)

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._one, names))

    async def resume(self, names: Sequence[str]) -> None:
        await flows.all_ended.wait()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    if url.startswith("sqlite:"):
        url = f"sqlite:///{url.removeprefix('sqlite:')}"
    DBOS(config={"name": "ten", "system_database_url": url, "log_level": "ERROR", "application_version": "1"})
    DBOS.launch()
    yield Runs()
    DBOS.destroy()


if __name__ == "__main__":
    main(opened)
