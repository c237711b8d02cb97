"""Write the logs in `data/`: `python -m tests.old_logs.write` at the root of a checkout.

The files there were written by the last code whose `$flow` knew `started`, `success`, `failure` and `reopened` alone, with
Python 3.11. Don't write them anew: later code must read them as they are. A later edition of the log gets a folder of its own.

Each run is run once, in memory and on a clock that stands still, and is then copied to every store, entry for entry; of a
traceback only the first and the last line are kept. Ids of runs and steps are always the same, those of entries are random.

`sqlite.sql` is the dump of a database of the version whose rows had no checksum; the same runs were copied to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import msgspec

from durable_core import MemoryStore, Runner, RunSuspended, StepFailed, StepRecord, Store, control, open_store
from durable_core.testing import FakeClock
from durable_postgres import schema_sql
from tests.old_logs.runs import BODIES, FLOWS, PowerCut, World, order_flow
from tests.servers.postgres import start_postgres
from tests.servers.redis import KEEPING, redis_server
from tests.servers.s3 import BUCKET, moto

DATA = Path(__file__).parent / "data"
FIELDS = (
    *("run_id", "step_id", "revision", "status", "kind", "name", "result", "error", "note", "until"),
    *("attempt", "started_at", "ended_at", "id", "fingerprint"),
)
ERROR = ("type", "message", "traceback", "bases")
SCHEMA = "old_logs"


async def run(store: Store, world: World, run_id: str, **failing: BaseException) -> None:
    """Run once, whatever comes of it."""
    world.failing = {name.replace("_", " "): error for name, error in failing.items()}
    with suppress(PowerCut, RunSuspended, StepFailed, NameError):
        if run_id in FLOWS:
            await order_flow(world).run(store, run_id, **FLOWS[run_id])
        else:
            async with Runner(store, run_id, clock=world.clock, wait_limit=0) as runner:
                await BODIES[run_id](runner, world)
    world.clock.advance(1)


async def write_all(store: Store) -> None:
    world = World(FakeClock())
    clock = world.clock
    refused = ConnectionError("the bank is closed")

    async def each(*run_ids: str, **failing: BaseException) -> None:
        for run_id in run_ids:
            await run(store, world, run_id, **failing)

    await control.send(store, "event-early", "packed", {"weight": 1.5, "by": "bob"}, clock=clock)
    await each("success", "once-finished", "kunde/ä {7} ~ %41", "begun-anew", "arguments", "values", "long", "flow-succeeded")
    await each("failure", "resolved", "retried", "reopened", "second-attempt", "flow-failed", "flow-reopened", charge=refused)
    await each("once-interrupted", "once-reopened", "once-recovered", "once-started-again", charge=PowerCut())
    await each("cancelled", "flow-interrupted", charge=PowerCut())
    await each("flow-typo", the_flow_itself=NameError("name 'totl' is not defined"))
    await each("sleep-waiting", "sleep-over", "event-early", "event-waiting", "event-received", "flow-waiting", "flow-cancelled")
    await each("approval-waiting", "approval-approved", "approval-rejected", "approval-too-late")
    await each("approval-one-vote", "approval-two-votes")

    await control.resolve(store, "resolved", "charge", "paid by hand", reason="seen in the books", clock=clock)
    for run_id in ("retried", "reopened", "once-reopened", "flow-reopened"):
        await control.retry(store, run_id, "charge", reason="the bank is open", clock=clock)
    await control.approve(store, "approval-approved", "approve", by="alice", reason="checked", clock=clock)
    await control.reject(store, "approval-rejected", "approve", by="bob", reason="duplicate", clock=clock)
    for run_id, *names in (("approval-one-vote", "alice"), ("approval-two-votes", "alice", "bob")):
        for name in names:
            await control.approve(store, run_id, "approve", by=name, clock=clock)
    await control.send(store, "event-received", "packed", {"weight": 2.5}, clock=clock)
    for run_id in ("cancelled", "flow-cancelled"):
        await control.cancel(store, run_id, reason="not wanted any more", clock=clock)

    await each("retried", "once-recovered", "once-started-again", "event-received")
    await each("approval-approved", "approval-rejected", "approval-two-votes")
    clock.advance(timedelta(days=2))
    await each("sleep-over", "approval-too-late")


def without_paths(record: StepRecord) -> StepRecord:
    """Return the record without the lines of a traceback that name files of the machine that wrote it."""
    if record.error is None:
        return record
    lines = record.error.traceback.splitlines(keepends=True)
    error = msgspec.structs.replace(record.error, traceback="".join((*lines[:1], *lines[1:][-1:])))
    return msgspec.structs.replace(record, error=error)


def described(record: StepRecord) -> dict[str, Any]:
    """Return the record's fields as JSON, each by itself and not in the wire form; those that are None are left out."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in FIELDS}
    fields["result"] = None if record.result is None else record.result.decode()
    fields["error"] = None if record.error is None else {name: getattr(record.error, name) for name in ERROR}
    return {name: value for name, value in msgspec.to_builtins(fields).items() if value is not None}


async def fill(store: Store, source: MemoryStore, *, long: bool = False) -> None:
    """Copy every run, the last one after it was begun and cleared. The long one is there where it is read in another way."""
    first, *_ = await source.list("begun-anew")
    run_ids = [run_id async for run_id in source.runs() if run_id != "begun-anew" and (long or run_id != "long")]
    for run_id in run_ids:
        await control.copy(source, run_id, store)
    await store.append(msgspec.structs.replace(first, id="0" * 24))
    await store.clear("begun-anew")  # not first of all: a log that holds nothing else is removed
    await control.copy(source, "begun-anew", store)


async def main() -> None:
    written, source = MemoryStore(), MemoryStore()
    await write_all(written)
    async for run_id in written.runs():
        for record in await written.list(run_id):
            await source.append(without_paths(record))
    DATA.mkdir()  # never over those that are there
    run_ids = [run_id async for run_id in source.runs() if run_id != "long"]  # whose entries are all alike
    entries = [described(record) for run_id in run_ids for record in await source.list(run_id)]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (DATA / "expected.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    await to_files(source)
    await to_postgres(source)
    await to_redis(source)
    await to_s3(source)


def write(name: str, value: object) -> None:
    text = json.dumps(value, indent=0, ensure_ascii=False) + "\n"
    (DATA / name).write_text(text, encoding="utf-8", errors="strict", newline="\n")


@asynccontextmanager
async def filled(url: str, source: MemoryStore, **options: bool) -> AsyncIterator[Store]:
    async with open_store(url) as store:
        await fill(store, source, **options)
        yield store


async def to_files(source: MemoryStore) -> None:
    with TemporaryDirectory() as folder:
        for place in ("file", "file-shared.jsonl"):
            async with filled(f"file:{folder}/{place}", source):
                pass
        (DATA / "file").mkdir()
        for log in (*Path(folder).glob("*.jsonl"), *Path(folder).glob("file/*.jsonl")):
            shutil.copy(log, DATA / log.relative_to(folder))


async def to_postgres(source: MemoryStore) -> None:
    """As SQL: the table as the store made it, and its rows in their order."""
    for server in start_postgres():
        async with filled(f"{server.url}?schema={SCHEMA}", source):
            pass
        connection = await asyncpg.connect(server.url)
        rows = await connection.fetch(f"select * from {SCHEMA}.steps order by seq")
        lines = [schema_sql(SCHEMA)]
        for row in rows:
            columns = {name: value for name, value in row.items() if name != "seq" and value is not None}
            literals = ", ".join("'{}'".format(str(value).replace("'", "''")) for value in columns.values())
            lines.append(f'insert into "{SCHEMA}"."steps" ({", ".join(columns)}) values ({literals});\n')
        await connection.close()
        (DATA / "postgres.sql").write_text("".join(lines), encoding="utf-8", newline="\n")


async def to_redis(source: MemoryStore) -> None:
    """As JSON: the fields of each key, named without the prefix; all of them are UTF-8."""
    with redis_server(*KEEPING) as server:
        async with filled(server.url, source):
            pass
        hashes: dict[str, dict[str, str]] = {}
        for key in sorted(server.command("KEYS", "durable:*:log")):
            fields = server.command("HGETALL", key)
            hashes[key.decode().removeprefix("durable:")] = {name.decode(): value.decode() for name, value in fields.items()}
        write("redis.json", hashes)


async def to_s3(source: MemoryStore) -> None:
    """As JSON: the bodies by their keys, of entries and of the snapshot of the long run, which a reader of it writes.

    The long run's entries themselves are left out, since all of them stand in the snapshot.
    """
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    with moto() as server:
        async with filled(server.url("logs"), source, long=True) as store:
            await store.list("long")
        client = server.client()
        objects: dict[str, str] = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="logs/"):
            for found in page["Contents"]:
                key = found["Key"].removeprefix("logs/")
                if key.startswith(("runs/", "snapshots/")) and not key.startswith("runs/long/"):
                    objects[key] = client.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read().decode()
        write("s3.json", objects)


if __name__ == "__main__":
    asyncio.run(main())
