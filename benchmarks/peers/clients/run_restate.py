"""Restate: a service of one handler with ten durable steps, served to the server over HTTP/2, called through its ingress.

The URL names the server's ingress; `RESTATE_ADMIN` its admin address and `RESTATE_SERVICE_PORT` the port to serve on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import hypercorn.asyncio
import restate
from harness import STEPS, Peer, flows, main, work

# A run that is to be resumed gives its process back a second after it waits; others keep the default, a minute.
SOON = timedelta(seconds=1) if sys.argv[2] == "record" else None
service = restate.Service("peers", inactivity_timeout=SOON)


@service.handler()
async def ten(context: restate.Context, name: str) -> None:
    flows.begin(name)
    for number in range(STEPS):
        await context.run_typed(f"step-{number}", work, number=number)
    if name.startswith("resumed"):  # this one waits without a process, until the next process resolves it
        id_, answer = context.awakeable()
        await context.run_typed("tell", tell, id_=id_)
        flows.hold()
        await answer
    flows.end(name)


async def tell(id_: str) -> None:
    """Write down what the run waits for, so that the next process can resolve it."""
    with Path(os.environ["RESTATE_IDS"]).open("a", encoding="utf-8") as file:
        file.write(f"{id_}\n")


JSON = {"accept": "application/json"}


class Runs:
    def __init__(self, ingress: httpx.AsyncClient) -> None:
        self._ingress = ingress

    async def _post(self, path: str, value: object) -> None:
        (await self._ingress.post(path, json=value)).raise_for_status()

    async def run(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._post("/peers/ten/send", name) for name in names))
        await flows.all_ended.wait()

    async def settle(self) -> None:
        query = {"query": "select id from sys_invocation where status != 'suspended' and status != 'completed'"}
        while (await self._ingress.post(f"{os.environ['RESTATE_ADMIN']}/query", json=query, headers=JSON)).json()["rows"]:
            await asyncio.sleep(0.1)

    async def resume(self, names: Sequence[str]) -> None:
        ids = Path(os.environ["RESTATE_IDS"]).read_text(encoding="utf-8").split()
        await asyncio.gather(*(self._post(f"/restate/awakeables/{id_}/resolve", "go") for id_ in ids))
        await flows.all_ended.wait()


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
