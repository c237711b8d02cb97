"""Requests, time and memory of the S3 store: per append, get, list, resume and clear, beside bare boto3.

python benchmarks/s3.py [entries ...], by default runs of 1, 100 and 1,000 entries; 100000 takes several minutes. Requests are
counted at the client, since they are what is paid for. The server is moto in a process of its own, so times tell of the client's
work and of the server's, and not of a network; the client's own CPU time stands beside them. The entries are put into moto's
memory before it serves, the same bytes that the store writes, and GET and LIST are answered straight from there; what is measured
goes through the store.
"""

from __future__ import annotations

import asyncio
import bisect
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

from durable_core import Runner
from durable_core.record import StepRecord
from durable_s3 import S3Store
from durable_s3._entry import encode
from durable_s3._keys import Keys
from tests.servers import s3 as servers
from tests.servers.s3 import BUCKET, S3Server

ROUNDS = 30
BARE_GETS = 5_000
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

    def text(self) -> str:
        counts = [f"{self[name]:,} {short}" for name, short in NAMES.items() if self[name]]
        self.clear()
        return ", ".join(counts)


def record(run_id: str, number: int) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=f"step-{number}", result=b'{"order": "order-1234567", "amount": 250}')


def taken_by(clients: list[Requests]) -> str:
    return ", ".join(filter(None, [requests.text() for requests in clients]))


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


class Times:
    """Seconds that went by, and those that this process computed in."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def taken(self) -> Times:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return self


async def timed(work: Callable[[], Awaitable[object]]) -> Times:
    times = Times()
    await work()
    return times.taken()


async def one_at_a_time(client: Any, store: S3Store, requests: list[Requests], entries: int) -> None:
    """Append to the run and get from it, each beside the bare call, in turns."""
    run_id = run_of(entries)
    times: dict[str, list[float]] = {}
    counted: dict[str, str] = {}

    async def note(name: str, work: Callable[[], Awaitable[object]]) -> None:
        taken_by(requests)
        times.setdefault(name, []).append((await timed(work)).wall)
        counted[name] = taken_by(requests)

    def bare_get(key: str) -> None:
        client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    added = []
    for number in range(ROUNDS):
        entry = record(run_id, entries + number)
        added.append(KEYS.entry(entry.run_id, entry.step_id, entry.revision))
        put = partial(client.put_object, Bucket=BUCKET, Key=f"bare/{number}", Body=entry.to_json(), IfNoneMatch="*")
        await note("bare put_object", partial(asyncio.to_thread, put))
        await note("append", partial(store.append, entry))
        await note("append, slot taken", partial(store.append, record(run_id, entries + number)))
        await note("bare get_object", partial(asyncio.to_thread, bare_get, f"bare/{number}"))
        await note("get", partial(store.get, run_id, entry.step_id))
    keys = [{"Key": key} for key in [*added, *(f"bare/{number}" for number in range(ROUNDS))]]
    client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
    for name, values in times.items():
        print(f"{entries:7,} {name:30} {statistics.median(values) * 1e3:9.2f} ms {'':10}   {counted[name]}", flush=True)
    ratio = statistics.median(times["append"]) / statistics.median(times["bare put_object"])
    print(f"{entries:7,} append over bare put_object: {ratio:.2f} x", flush=True)


async def whole_run(server: S3Server, client: Any, store: S3Store, requests: list[Requests], entries: int) -> None:
    """Read a run without and with a snapshot, resume it, and clear it."""
    run_id = run_of(entries)

    async def note(name: str, work: Callable[[], Awaitable[object]]) -> Times:
        taken_by(requests)
        times = await timed(work)
        print(f"{entries:7,} {name:30} {times.wall:9.2f} s  {times.cpu:6.2f} s CPU   {taken_by(requests)}", flush=True)
        return times

    keys: list[str] = []

    def list_bare() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=KEYS.run(run_id))
        keys.extend(at["Key"] for page in pages for at in page.get("Contents", ()))

    def get_bare() -> None:
        def get(key: str) -> None:
            client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

        with ThreadPoolExecutor(32) as threads:
            for _ in threads.map(get, keys[:BARE_GETS]):
                pass

    lists = await note("bare LISTs", partial(asyncio.to_thread, list_bare))
    gets = await note("bare GETs, 32 wide", partial(asyncio.to_thread, get_bare))
    bare = lists.wall + gets.wall * len(keys) / min(len(keys), BARE_GETS)
    read_first = await note("list, the first time", partial(store.list, run_id))
    of = "" if len(keys) <= BARE_GETS else f", these scaled from {BARE_GETS:,}"
    print(f"{entries:7,} list over bare LISTs and GETs{of}: {read_first.wall / bare:.2f} x", flush=True)
    await note("list, once more", partial(store.list, run_id))
    idle = int(in_child("--idle")[0])
    for _ in range(3):
        wall, cpu, peak, *counted = in_child("--resume", server.url(ROOT), run_id)
        memory = f"{(int(peak) - idle) / 1e6:.0f} MB over the interpreter with boto3 imported"
        seconds = f"{float(wall):9.2f} s  {float(cpu):6.2f} s CPU"
        print(f"{entries:7,} {'resume under the lock':30} {seconds}   {' '.join(counted)}; {memory}", flush=True)
    await note("clear", partial(store.clear, run_id))


async def resume(url: str, run_id: str) -> None:
    """Resume a run in this process; print the seconds, the most memory, and the requests."""
    times = Times()
    async with S3Store.from_url(f"{url}&probe=false") as store:
        requests = await store._connection.request(Requests)
        async with Runner(store, run_id):
            times.taken()
    print(times.wall, times.cpu, peak_memory(), requests.text())


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
                await one_at_a_time(client, store, requests, entries)
                await whole_run(server, client, store, requests, entries)
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
