"""`scan`: a long run in bounded memory, of one log and never of two."""

from __future__ import annotations

import asyncio
import tracemalloc
from uuid import uuid4

import pytest

from durable_core import CorruptLog, StoreError
from durable_s3 import S3Store
from durable_s3._keys import Keys
from tests.s3.support import Requests, client_of, entry, open_at
from tests.servers.s3 import BUCKET, S3Server

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_scan_is_bounded(ministack_server: S3Server, snapshot: bool) -> None:
    """Of a log of 15 MB a scan has a part in memory, whether its entries are in a snapshot or not."""
    prefix, result = uuid4().hex, b'"' + b"x" * 100_000 + b'"'
    async with open_at(ministack_server.endpoint, prefix, probe=False) as store:
        await asyncio.gather(*(store.append(entry(f"{number}", result=result)) for number in range(150)))
        if snapshot:
            await store.list("run")
    async with open_at(ministack_server.endpoint, prefix, probe=False) as store:
        tracemalloc.start()
        try:
            found = [record.step_id async for record in store.scan("run") if record.result == result]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(set(found)) == 150
    assert peak < 9 * 1024 * 1024


async def test_what_a_scan_costs(moto_server: S3Server) -> None:
    """Two GETs an entry; one, and one for the snapshot, where the entry is in that."""
    client = client_of(moto_server.endpoint)
    requests = Requests(client)
    async with open_at(moto_server.endpoint, prefix := uuid4().hex, probe=False) as writer:
        await asyncio.gather(*(writer.append(entry(f"{number}")) for number in range(30)))
        async with S3Store(client, BUCKET, prefix, probe=False) as store:
            store._reader.smallest_snapshot = writer._reader.smallest_snapshot = 30
            assert len([record async for record in store.scan("run")]) == 30
            assert requests.taken() == {"list": 1, "get": 61}  # one that finds no snapshot
            await writer.list("run")
            assert len([record async for record in store.scan("run")]) == 30
            assert requests.taken() == {"list": 1, "get": 31}
    client.close()


async def test_a_run_that_is_written_anew_during_a_scan(moto_server: S3Server) -> None:
    """A scan that has yielded some of one log raises where it comes to entries that have gone or are another's."""
    for again in (False, True):
        async with open_at(moto_server.endpoint, uuid4().hex, probe=False) as store:
            await asyncio.gather(*(store.append(entry(f"{number}")) for number in range(40)))
            scanned = store.scan("run")
            await anext(scanned)
            await store.clear("run")
            if again:
                await asyncio.gather(*(store.append(entry(f"{number}", name="again")) for number in range(40)))
            with pytest.raises(StoreError, match="was changed or deleted while its run was read; was the run cleared"):
                [record async for record in scanned]


async def test_a_damaged_entry_in_a_scan(moto_server: S3Server) -> None:
    """A scan names the object that is no entry, or stands at another's key."""
    prefix = uuid4().hex
    client = client_of(moto_server.endpoint)
    key = Keys(prefix).entry("run", "step", 0)
    async with open_at(moto_server.endpoint, prefix, probe=False) as store:
        other = await store.append(entry(run_id="other"))
        for body in (b"", b"{}", b'{"order":1,%b' % other.to_json()[1:]):
            client.put_object(Bucket=BUCKET, Key=key, Body=body)
            with pytest.raises(CorruptLog, match=key.replace(".", r"\.")):
                [record async for record in store.scan("run")]
    client.close()
