"""DBOS: a plain workflow of ten plain steps, run by DBOS's own threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import time

from dbos import DBOS, SetWorkflowID
from harness import STEPS, VALUE, Peer, flows, main


@DBOS.step()
def step(number: int) -> str:
    began = time()
    flows.steps.append((began, time()))
    return VALUE


@DBOS.workflow()
def ten(name: str) -> None:
    flows.begin(name)
    for number in range(STEPS):
        step(number)
    flows.end(name)


class Runs:
    def _all(self, names: Sequence[str]) -> None:
        handles = []
        for name in names:
            with SetWorkflowID(name):
                handles.append(DBOS.start_workflow(ten, name))
        for handle in handles:
            handle.get_result()

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.to_thread(self._all, names)

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
