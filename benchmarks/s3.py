"""The requests of the S3 store, and its time and memory beside bare boto3: `python benchmarks/s3.py [entries ...]`.

By default for runs of 1, 100 and 1,000 entries; 100000 takes several minutes. Requests are counted at the client, since they are
what is paid for. The server is moto in a process of its own, which answers GET and LIST straight from its memory, so times tell
of the client's work and not of a network. The entries are there before it serves, with the bytes that the store writes.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, quote

sys.path.insert(0, str(Path(__file__).parents[1]))

from rows import row
from runs import add_flows, finding_seconds

from durable_core import Runner
from durable_core.record import StepRecord
from durable_s3 import S3Store
from durable_s3._entry import encode
from durable_s3._keys import Keys
from tests.s3.support import TestsClock
from tests.servers import s3 as servers
from tests.servers.s3 import BUCKET, S3Server

ROUNDS = 30
FLOWS = 1_000
ROOT = "logs"
KEYS = Keys(ROOT)
NAMES = {"PutObject": "PUT", "GetObject": "GET", "ListObjectsV2": "LIST", "DeleteObjects": "DELETE"}


class Requests(Counter[str]):
    """Counts what a client sends."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        client.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: Any) -> None:
        self[event_name.rpartition(".")[2]] += 1

    def taken(self) -> Counter[str]:
        """Return the counts since the last time."""
        found = Counter({short: self[name] for name, short in NAMES.items()})
        self.clear()
        return found


def record(run_id: str, number: int) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=f"step-{number}", result=b'{"order": "order-1234567", "amount": 250}')


def taken_by(clients: list[Requests]) -> dict[str, int]:
    return sum((requests.taken() for requests in clients), Counter())


def run_of(entries: int) -> str:
    return f"run-{entries}"


# The server


def serve(port: int, sizes: list[int]) -> None:
    """Be moto, with runs of these sizes in its bucket."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    order = time.time_ns() // 1000 - sum(sizes)
    for entries in sizes:
        for number in range(entries):
            entry = record(run_of(entries), number)
            key = KEYS.entry(entry.run_id, entry.step_id, entry.revision)
            backend.put_object(BUCKET, key, encode(entry, order + number), disable_notification=True)
    app = Shortcut(backend.get_bucket(BUCKET).keys, DomainDispatcherApplication(create_backend_app))
    make_server("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler).serve_forever()


class Shortcut:
    """Answers GET and LIST straight from moto's memory.

    Its own way takes several times as long as all that the client does, and sorts all keys of a bucket for each page of a LIST.
    """

    def __init__(self, objects: Any, app: Callable[..., Any]) -> None:
        self.objects = objects
        self.app = app
        self.names: list[str] = []
        self.items: dict[Any, str] = {}
        self.writing = Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        query = parse_qs(environ["QUERY_STRING"])
        if environ["REQUEST_METHOD"] != "GET":
            with self.writing:  # moto looks whether a key exists and stores it in two steps
                self.names = []
                return self.app(environ, start_response)
        if key in self.objects:
            found = self.objects[key]
            start_response("200 OK", [("ETag", found.etag), ("Content-Length", str(found.size))])
            return [found.value]
        if "list-type" in query and "delimiter" not in query:
            body = self.page(query)
            start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        return self.app(environ, start_response)

    def item(self, name: str) -> str:
        at = self.objects[name]
        if at not in self.items:
            self.items[at] = (
                f"<Contents><Key>{quote(name)}</Key><LastModified>{at.last_modified_ISO8601}</LastModified>"
                f"<ETag>{escape(at.etag)}</ETag><Size>{at.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        return self.items[at]

    def page(self, query: dict[str, list[str]]) -> bytes:
        names = self.names = self.names or sorted(self.objects)
        (prefix,), most = query["prefix"], int(query.get("max-keys", ["1000"])[0])
        after = query.get("continuation-token")
        begin = bisect.bisect_right(names, after[0]) if after else bisect.bisect_left(names, prefix)
        found = [name for name in names[begin : begin + most + 1] if name.startswith(prefix)]
        more = f"<NextContinuationToken>{found[most - 1]}</NextContinuationToken>" if len(found) > most else ""
        contents = "".join(map(self.item, found[:most]))
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{quote(prefix)}</Prefix><EncodingType>url</EncodingType><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{contents}</ListBucketResult>"
        ).encode()


@contextmanager
def server_with(sizes: list[int]) -> Iterator[S3Server]:
    server = S3Server(sys.executable, __file__, "--serve", "{port}", *map(str, sizes))
    servers._START_SECONDS = 900.0  # 100,000 entries take a minute to make
    try:
        server.start()
        yield server
    finally:
        server.kill()


# What is measured


async def counted(requests: list[Requests], work: Awaitable[object]) -> dict[str, int]:
    """Return how many requests of each kind `work` sends."""
    taken_by(requests)
    await work
    return taken_by(requests)


async def single_calls(client: Any, store: S3Store, requests: list[Requests], entries: int) -> None:
    """Append to a run and get from it, each beside the bare call, in turns."""
    run_id, times = run_of(entries), dict[str, list[float]]()

    async def timed(name: str, work: Callable[[], Awaitable[object]]) -> dict[str, int]:
        start = time.perf_counter()
        found = await counted(requests, work())
        times.setdefault(name, []).append(time.perf_counter() - start)
        return found

    for number in range(ROUNDS):
        entry = record(run_id, entries + number)
        put = partial(client.put_object, Bucket=BUCKET, Key=f"bare/{entries}/{number}", Body=entry.to_json(), IfNoneMatch="*")
        await timed("bare", partial(asyncio.to_thread, put))
        append = await timed("append", partial(store.append, entry))
        get = await timed("get", partial(store.get, run_id, entry.step_id))
    row("append, requests", sum(append.values()), 1, "PUT")
    row("get, requests", sum(get.values()), 2, "")
    row("append, over a bare put_object", statistics.median(times["append"]) / statistics.median(times["bare"]), None, "x")


async def whole_run(server: S3Server, client: Any, store: S3Store, requests: list[Requests], entries: int) -> None:
    """Read a run without and with its snapshot, resume it, and clear it."""
    run_id = run_of(entries)
    lists = math.ceil((entries + ROUNDS) / 1000)
    widest = Widest(await store._connection.request(lambda client: client))
    start = time.perf_counter()
    first = await counted(requests, store.list(run_id))
    seconds = time.perf_counter() - start
    snapshot = entries >= 100
    row(f"a run of {entries:,}: LISTs, with the snapshot's", first["LIST"], lists + snapshot, "")
    row(f"a run of {entries:,}: GETs, with the snapshot's", first["GET"], entries + ROUNDS + snapshot, "")
    row(f"a run of {entries:,}: GETs at a time", widest.peak, 32, "")
    row(f"a run of {entries:,}: seconds, over bare GETs 32 wide", seconds / await bare_gets(client, run_id), None, "x")
    second = await counted(requests, store.list(run_id))
    row(f"a run of {entries:,}, once more: requests", sum(second.values()), lists + (1 if snapshot else entries + ROUNDS), "")
    idle = int(in_child("--idle")[0])
    wall, peak = in_child("--resume", server.url(ROOT), run_id)
    row(f"a run of {entries:,}: resumed", float(wall), None, "s")
    row(f"a run of {entries:,}: memory over the interpreter with boto3", (int(peak) - idle) / 1e6, 100, "MB")
    await store.clear(run_id)


class Widest:
    """The most GETs that a client had under way at one time."""

    def __init__(self, client: Any) -> None:
        self.peak = self._now = 0
        self._lock = Lock()
        client.meta.events.register("before-send.s3.GetObject", partial(self._count, 1))
        client.meta.events.register("after-call.s3.GetObject", partial(self._count, -1))

    def _count(self, by: int, **_: Any) -> None:
        with self._lock:
            self._now += by
            self.peak = max(self.peak, self._now)


async def bare_gets(client: Any, run_id: str) -> float:
    """List and get the run's objects with boto3 alone, 32 at a time; return the seconds."""

    def read() -> float:
        start = time.perf_counter()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=KEYS.run(run_id))
        keys = [at["Key"] for page in pages for at in page.get("Contents", ())]
        with ThreadPoolExecutor(32) as threads:
            for _ in threads.map(lambda key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read(), keys):
                pass
        return time.perf_counter() - start

    return await asyncio.to_thread(read)


async def waiting(store: S3Store, requests: list[Requests]) -> None:
    """Hold a lock and look at three steps for ten minutes of a clock that the benchmark moves."""
    clock = store._leases.clock = TestsClock()
    known = [("waits", step, 0) for step in ("approve", "$flow", "$cancel")]
    async with store.lock("waits"):
        taken_by(requests)
        for _ in range(int(600 / store.poll_seconds)):
            await clock.pass_by(store.poll_seconds)
            await store.newer(known)
        row("a run that waits and holds its lock: requests a minute", sum(taken_by(requests).values()) / 10, 4, "")


async def finding(store: S3Store, requests: list[Requests]) -> None:
    """Find runs that wait by their marks, and read the logs of a page."""
    await add_flows(store, FLOWS)
    await finding_seconds(store, 1)
    taken_by(requests)
    took = await finding_seconds(store, ROUNDS - 1)
    row(f"50 runs that wait, of {FLOWS:,}, half of them open: requests", sum(taken_by(requests).values()) / ROUNDS, None, "")
    row(f"50 runs that wait, of {FLOWS:,}, half of them open", took, None, "s")


async def resume(url: str, run_id: str) -> None:
    """Resume a run in this process; print the seconds and the most memory."""
    start = time.perf_counter()
    async with S3Store.from_url(f"{url}&probe=false") as store, Runner(store, run_id) as runner:
        await runner.history()
        print(time.perf_counter() - start, peak_memory())


async def connect() -> None:
    async with S3Store.from_url(f"s3://{BUCKET}?region=us-east-1") as store:
        await store._connection.open()


def peak_memory() -> int:
    """Return the most bytes that this process ever had; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def in_child(what: str, *args: str) -> list[str]:
    return subprocess.check_output([sys.executable, __file__, what, *args], text=True).split()


async def measure(sizes: list[int]) -> None:
    with server_with(sizes) as server:
        client = server.client()
        async with S3Store.from_url(server.url(ROOT)) as store:
            requests = [Requests(client), await store._connection.request(Requests)]
            await store.list("warm-up")
            for entries in sizes:
                await single_calls(client, store, requests[1:], entries)
                await whole_run(server, client, store, requests[1:], entries)
            await waiting(store, requests[1:])
            await finding(store, requests[1:])
        client.close()


def main() -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    match sys.argv[1:]:
        case ["--serve", port, *sizes]:
            serve(int(port), [int(size) for size in sizes])
        case ["--resume", url, run_id]:
            asyncio.run(resume(url, run_id))
        case ["--idle"]:
            asyncio.run(connect())
            print(peak_memory())
        case sizes:
            asyncio.run(measure([int(size) for size in sizes] or [1, 100, 1_000]))


if __name__ == "__main__":
    main()
