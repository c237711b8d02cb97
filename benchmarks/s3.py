"""Requests and time of the S3 store: per append, get, list and resume, with and without a snapshot, beside bare boto3.

python benchmarks/s3.py [entries ...], by default runs of 1, 100 and 1,000 entries; 100000 takes half an hour. The
server is moto on the same machine, so that times tell of the client's work and not of a network; requests are what is paid for.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from durable_core import Runner
from durable_core.record import StepRecord
from durable_s3 import S3Store
from tests.servers.s3 import BUCKET, moto

ROUNDS = 30


class Requests(Counter[str]):
    """Counts what a client sends."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        client.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: Any) -> None:
        self[event_name.rpartition(".")[2]] += 1

    def text(self, per: int = 1) -> str:
        names = {"PutObject": "PUT", "GetObject": "GET", "ListObjectsV2": "LIST", "DeleteObjects": "DELETE"}
        counts = [f"{self[name] / per:g} {short}" for name, short in names.items() if self[name]]
        self.clear()
        return ", ".join(counts)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def record(run_id: str, number: int) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=f"step-{number}", result=b'{"order": "order-1234567", "amount": 250}')


async def one_at_a_time(client: Any, store: S3Store, requests: Requests) -> None:
    """Append and get, each beside the bare call, in turns."""
    times: dict[str, list[float]] = {}
    counted: dict[str, str] = {}

    async def note(name: str, work: Callable[[], Awaitable[object]]) -> None:
        requests.clear()
        times.setdefault(name, []).append(await timed(work))
        counted[name] = requests.text()

    def bare_get(key: str) -> None:
        client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    for number in range(ROUNDS):
        entry = record("single", number)
        put = partial(client.put_object, Bucket=BUCKET, Key=f"bare/{number}", Body=entry.to_json(), IfNoneMatch="*")
        await note("bare put_object", partial(asyncio.to_thread, put))
        await note("append", partial(store.append, entry))
        await note("append, slot taken", partial(store.append, record("single", number)))
        await note("bare get_object", partial(asyncio.to_thread, bare_get, f"bare/{number}"))
        await note("get", partial(store.get, "single", entry.step_id))
    for name, values in times.items():
        print(f"{name:34} {statistics.median(values) * 1e3:9.2f} ms   {counted[name]}")
    ratio = statistics.median(times["append"]) / statistics.median(times["bare put_object"])
    print(f"append over bare put_object: {ratio:.2f} x")


async def whole_run(client: Any, requests: Requests, entries: int) -> None:
    """Append a run, then read it without and with a snapshot, resume it, and clear it."""
    run_id = f"run-{entries}"

    async def note(name: str, work: Callable[[], Awaitable[object]]) -> float:
        requests.clear()
        seconds = await timed(work)
        print(f"{entries:7} {name:26} {seconds:9.3f} s    {requests.text()}")
        return seconds

    async def append_all() -> None:
        for start in range(0, entries, 1000):
            await asyncio.gather(*(store.append(record(run_id, number)) for number in range(start, min(entries, start + 1000))))

    async def resume() -> None:
        async with S3Store(client, BUCKET, "logs", probe=False) as fresh, Runner(fresh, run_id):
            pass

    async def bare_reads() -> None:
        def get(key: str) -> None:
            client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

        def read() -> None:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"logs/runs/{run_id}/")
            keys = [at["Key"] for page in pages for at in page.get("Contents", ())]
            with ThreadPoolExecutor(32) as threads:
                [*threads.map(get, keys)]

        await asyncio.to_thread(read)

    async with S3Store(client, BUCKET, "logs") as store:
        await note("append, all at once", append_all)
        bare = await note("bare LIST and GETs, 32 wide", bare_reads)
        read = await note("list, first time", lambda: store.list(run_id))
        await note("list, once more", lambda: store.list(run_id))
        await note("resume under the lock", resume)
        await note("clear", lambda: store.clear(run_id))
        print(f"{entries:7} list over bare LIST and GETs: {read / bare:.2f} x")


async def main(sizes: list[int]) -> None:
    with moto() as server:
        client = server.client()
        requests = Requests(client)
        async with S3Store(client, BUCKET, "logs") as store:
            await store.list("warm-up")
            await one_at_a_time(client, store, requests)
        for entries in sizes:
            await whole_run(client, requests, entries)
        client.close()


if __name__ == "__main__":
    asyncio.run(main([int(size) for size in sys.argv[1:]] or [1, 100, 1_000]))
