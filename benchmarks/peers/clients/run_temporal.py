"""Temporal: a workflow of ten activities, with a client and a worker in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetStickyTaskQueueRequest
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from harness import MANY, STEPS, Peer, Settled, flows, main, work

QUEUE = "peers"


@activity.defn
async def step(number: int) -> str:
    return await work(number)


@workflow.defn
class Ten:
    released = False

    @workflow.run
    async def run(self, name: str) -> None:
        flows.begin(name)
        for number in range(STEPS):
            await workflow.execute_activity(step, number, start_to_close_timeout=timedelta(seconds=60))
        if name.startswith("resumed"):
            flows.hold()
            await workflow.wait_condition(lambda: self.released)
        flows.end(name)

    @workflow.signal
    def release(self) -> None:
        self.released = True


class Runs(Settled):
    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, names: Sequence[str]) -> None:
        started = (self._client.start_workflow(Ten.run, name, id=name, task_queue=QUEUE) for name in names)
        # Until the server has the end of each: a workflow whose last task is repeated would end in the next measurement again.
        await asyncio.gather(*(handle.result() for handle in await asyncio.gather(*started)))

    async def _release(self, name: str) -> None:
        # By default the server offers a run to the killed process first, for 10 seconds.
        execution = WorkflowExecution(workflow_id=name)
        request = ResetStickyTaskQueueRequest(namespace=self._client.namespace, execution=execution)
        await self._client.workflow_service.reset_sticky_task_queue(request)
        await self._client.get_workflow_handle(name).signal(Ten.release)

    async def resume(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._release, names))
        await flows.all_ended.wait()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    client = await Client.connect(url)
    most = max(MANY)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[Ten],
        activities=[step],
        max_concurrent_activities=most,
        max_concurrent_workflow_tasks=most,
    )
    async with worker:
        yield Runs(client)


if __name__ == "__main__":
    main(opened)
