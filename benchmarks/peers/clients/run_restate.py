"""Restate: a service of one handler with ten durable steps, served to the server over HTTP/2, called through its ingress.

The URL names the server's ingress; `RESTATE_ADMIN` its admin address and `RESTATE_SERVICE_PORT` the port to serve on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import hypercorn.asyncio
import restate
from harness import STEPS, Peer, Settled, flows, held, main, work

# The server asks the next process for the runs of a killed one every 0.1 s, without the pauses that it makes by default.
PAUSE = timedelta(seconds=0.1)
service = restate.Service(
    "peers", invocation_retry_policy=restate.InvocationRetryPolicy(initial_interval=PAUSE, max_interval=PAUSE, max_attempts=600)
)


@service.handler()
async def ten(context: restate.Context, name: str) -> None:
    flows.begin(name)
    for number in range(STEPS):
        await context.run_typed(f"step-{number}", work, number=number)
    if flows.hold():
        await held()
    flows.end(name)


UNDER_WAY = {"query": "select id from sys_invocation where status in ('ready', 'running')"}
JSON = {"accept": "application/json"}


class Runs(Settled):
    def __init__(self, ingress: httpx.AsyncClient) -> None:
        self._ingress = ingress

    async def _send(self, name: str) -> None:
        (await self._ingress.post("/peers/ten/send", json=name)).raise_for_status()

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*map(self._send, names))
        await self._all_ended()

    async def resume(self, names: Sequence[str]) -> None:
        await self._all_ended()

    async def _all_ended(self) -> None:
        """Wait until the server has the end of each, too: it would run one whose process is killed before in the next process."""
        await flows.all_ended.wait()
        while (await self._ingress.post(f"{os.environ['RESTATE_ADMIN']}/query", json=UNDER_WAY, headers=JSON)).json()["rows"]:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Peer]:
    port = os.environ["RESTATE_SERVICE_PORT"]
    config = hypercorn.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.h2_max_concurrent_streams = 2**31 - 1
    config.keep_alive_max_requests = 2**31 - 1
    config.keep_alive_timeout = 2**31 - 1
    config.errorlog = None
    over = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(restate.app([service]), config, shutdown_trigger=over.wait))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=50)) as ingress:
        registration = {"uri": f"http://127.0.0.1:{port}", "force": True}
        for _ in range(100):
            answer = await ingress.post(f"{os.environ['RESTATE_ADMIN']}/deployments", json=registration)
            if answer.is_success:
                break
            await asyncio.sleep(0.1)
        answer.raise_for_status()
        yield Runs(ingress)
    over.set()
    await serving


if __name__ == "__main__":
    main(opened)
