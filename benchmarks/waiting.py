"""What an approval of another process costs a run that waits, on each store: `python benchmarks/waiting.py [store …]`.

From the call of `approve` there to the run going on here, by the clock that both processes read: the medians of twenty runs that
wait at the same time. A store without `watch` is polled, so that its figure is about half the time between two rounds.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import time
from uuid import uuid4

from rows import row
from runs import decision_seconds

from durable_core import MemoryStore, Runner, control, open_store
from durable_core.store import polling_of, watch_of

sys.path.append(str(Path(__file__).parents[1]))
from tests.servers.postgres import start_postgres
from tests.servers.redis import KEEPING, redis_server
from tests.servers.s3 import ministack

ACTS = 20
STORES = ("memory", "file", "sqlite", "redis", "postgres", "s3")


@contextmanager
def place(store: str) -> Iterator[str]:
    """Start what the store needs, and yield the URL of an empty one."""
    if store == "file":
        with TemporaryDirectory() as folder:
            yield f"file:{folder}/runs"
    elif store == "sqlite":
        with TemporaryDirectory() as folder:
            yield f"sqlite:{folder}/runs.db"
    elif store == "redis":
        with redis_server(*KEEPING) as server:
            yield server.url
    elif store == "postgres":
        for postgres in start_postgres():
            yield postgres.url
    else:
        with ministack() as s3:
            s3.make_bucket("waiting")
            yield s3.url("logs", "waiting")


async def approve(url: str, name: str, pause: float) -> None:
    """Approve in each run, and print when."""
    async with open_store(url) as store:
        await store.get(f"{name}-0", "ask")  # so that the first one needs no connection
        for run in range(ACTS):
            await asyncio.sleep(pause)
            began = time()
            await control.approve(store, f"{name}-{run}", "ask", by="alice")
            print(began)


async def another_process(url: str) -> tuple[float, bool]:
    """Return the median time from an approval to the run going on, and whether the store has `watch`."""
    name = uuid4().hex

    async with open_store(url) as store:
        ended: dict[int, float] = {}

        async def waits(run: int) -> None:
            async with Runner(store, run_id=f"{name}-{run}") as runner:
                await runner.approval("ask", {"amount": 90})
                ended[run] = time()

        waiting = [asyncio.create_task(waits(run)) for run in range(ACTS)]
        while any([await store.get(f"{name}-{run}", "ask") is None for run in range(ACTS)]):
            await asyncio.sleep(0.05)
        polling = polling_of(store)
        pause = (2.0 if polling is None else polling.poll_seconds) / 7  # which meets the rounds at different moments
        arguments = (__file__, "--approve", url, name, str(pause))
        child = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
        output, _ = await child.communicate()
        await asyncio.gather(*waiting)
        began = map(float, output.split())
        return median(ended[run] - at for run, at in enumerate(began)), watch_of(store) is not None


def measure(store: str) -> None:
    if store == "memory":
        row("memory, an approval to the run of the same process", asyncio.run(decision_seconds(MemoryStore())) * 1e3, 5, "ms")
        return
    with place(store) as url:
        took, watches = asyncio.run(another_process(url))
        limit = 50 if watches else 20_000 if store == "s3" else 2_000
        how = "with watch" if watches else "polled"
        row(f"{store}, an approval to the run of another process, {how}", took * 1e3, limit, "ms")


def main() -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    match sys.argv[1:]:
        case ["--approve", url, name, pause]:
            asyncio.run(approve(url, name, float(pause)))
        case stores:
            for store in stores or STORES:
                measure(store)


if __name__ == "__main__":
    main()
