"""Absurd: tasks of ten steps, spawned into a queue that asyncio workers of this process pull from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from absurd_sdk import AsyncAbsurd
from harness import MANY, STEPS, Peer, flows, main, work

WORKERS = 10  # each has a connection of its own: one alone would run the statements of all tasks one by one
QUEUE = "peers"


async def ten(params: Any, context: Any) -> None:
    name = params["name"]
    flows.begin(name)
    for number in range(STEPS):
        await context.step(f"step-{number}", partial(work, number))
    if name.startswith("resumed"):  # these give their workers back, and wait for the next process
        flows.hold()
        await context.await_event(event(name))
    flows.end(name)


def event(name: str) -> str:
    """Return what the runs of a round wait for: an event stays, so each round has its own."""
    return name.rpartition("-")[0]


class Runs:
    def __init__(self, client: AsyncAbsurd) -> None:
        self._client = client
        self._tasks: list[str] = []

    async def run(self, names: Sequence[str]) -> None:
        for name in names:
            self._tasks.append((await self._client.spawn("ten", {"name": name}, queue=QUEUE))["task_id"])
        await flows.all_ended.wait()

    async def settle(self) -> None:
        for task_id in self._tasks:
            while (task := await self._client.fetch_task_result(task_id, QUEUE)) is None or task.state != "sleeping":
                await asyncio.sleep(0.05)

    async def resume(self, names: Sequence[str]) -> None:
        await self._client.emit_event(event(names[0]))
        await flows.all_ended.wait()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    async with AsyncExitStack() as stack:
        client, *workers = (AsyncAbsurd(url, queue_name=QUEUE) for _ in range(1 + WORKERS))
        await client.create_queue(QUEUE)
        working = []
        for number, worker in enumerate(workers):
            worker.register_task("ten")(ten)
            pulling = worker.start_worker(f"w{number}", concurrency=max(MANY) // WORKERS)
            working.append(asyncio.create_task(pulling))
        for one in (client, *workers):
            stack.push_async_callback(one.close)
        yield Runs(client)
        for worker in workers:
            worker.stop_worker()
        await asyncio.gather(*working)


if __name__ == "__main__":
    main(opened)
