"""A snapshot saves requests and is never trusted further than LIST goes."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from durable_core import CorruptLog
from durable_core.record import StepRecord
from durable_s3 import S3Store
from durable_s3._keys import Keys
from tests.s3.proxy import Line, Proxy
from tests.s3.support import Requests, client_of, entry
from tests.servers.s3 import BUCKET, S3Server

pytestmark = pytest.mark.asyncio


CONSISTENT = ["no entries", "an entry that is none"]
"""Damage that the checksum does not tell."""


class Run:
    """A run of 30 entries, and a store that takes so many for a long run."""

    def __init__(self, endpoint: str) -> None:
        self.client = client_of(endpoint)
        self.requests = Requests(self.client)
        self.prefix = uuid4().hex
        self.keys = Keys(self.prefix)
        self.store = S3Store(self.client, BUCKET, self.prefix, probe=False)
        self.store._reader.smallest_snapshot = 10
        self.records: list[StepRecord] = []

    async def begin(self) -> None:
        self.records = list(await asyncio.gather(*(self.store.append(entry(f"step-{number}")) for number in range(30))))
        assert await self.store.list("run") == self.records
        self.requests.clear()

    def snapshot(self) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=self.keys.snapshot("run"))["Body"].read()
        return body

    def snapshot_line(self) -> bytes:
        key = self.keys.entry("run", "step-29", 0)
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body + b" " * 70  # its name and ETag

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)
        self.requests.clear()


@pytest.fixture
async def run(moto_server: S3Server) -> AsyncIterator[Run]:
    found = Run(moto_server.endpoint)
    async with found.store:
        await found.begin()
        yield found
    found.client.close()


async def test_it_is_written_when_a_long_run_is_read(run: Run) -> None:
    """And used by the next reader; it grows once as many entries again are not in it."""
    assert await run.store.list("run") == run.records
    assert run.requests.taken() == {"list": 1, "get": 1}
    run.records += await asyncio.gather(*(run.store.append(entry(f"more-{number}")) for number in range(12)))
    run.requests.clear()
    assert await run.store.list("run") == run.records
    assert run.requests.taken() == {"list": 2, "get": 13, "put": 1}
    assert await run.store.list("run") == run.records
    assert run.requests.taken() == {"list": 1, "get": 1}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "not ours", "another run's", "newer", *CONSISTENT, "not text"])
async def test_a_damaged_one_is_ignored_and_replaced(run: Run, damage: str) -> None:
    good = run.snapshot()
    damaged = {
        "cut": good[: len(good) // 2],
        "flipped": good.replace(b"step-7", b"step-8"),
        "empty": b"",
        "not ours": b"<html>",
        "another run's": good.replace(b'"run_id":"run"', b'"run_id":"ran"', 1),
        "newer": good.replace(b'"v":1', b'"v":2', 1),
        "not text": good.replace(b"step-7", b"step-\xff"),
        "no entries": consistent(re.sub(rb",\{.*\}\]\n", b',{"a":1}]\n', good)),
        "an entry that is none": consistent(good.replace(b'"revision":0', b'"revision":"0"', 2)),
    }[damage]
    run.put(run.keys.snapshot("run"), damaged)
    assert await run.store.list("run") == run.records
    assert run.requests.taken() == {"list": 2, "get": 31, "put": 1}
    assert run.snapshot() == good


def consistent(snapshot: bytes) -> bytes:
    """Give it the checksum of what stands in it."""
    head, _, lines = snapshot.partition(b"\n")
    digest = hashlib.sha256(lines).hexdigest().encode()
    return re.sub(rb'"sha256":"\w+"', b'"sha256":"%b"' % digest, head) + b"\n" + lines


async def test_a_missing_one_is_made_anew(run: Run) -> None:
    run.client.delete_object(Bucket=BUCKET, Key=run.keys.snapshot("run"))
    assert await run.store.list("run") == run.records
    assert run.snapshot()


async def test_an_entry_counts_only_with_the_etag_that_is_listed(run: Run) -> None:
    """An object that was replaced by hand is read, not taken from the snapshot."""
    key = run.keys.entry("run", "step-7", 0)
    body = run.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    run.put(key, body.replace(b'"name":"step-7"', b'"name":"edited"'))
    listed = await run.store.list("run")
    assert [record.name for record in listed if record.step_id == "step-7"] == ["edited"]
    assert run.requests.taken() == {"list": 1, "get": 2}


async def test_an_entry_that_is_not_listed_does_not_count(run: Run) -> None:
    run.client.delete_object(Bucket=BUCKET, Key=run.keys.entry("run", "step-7", 0))
    assert await run.store.list("run") == [record for record in run.records if record.step_id != "step-7"]


async def test_clear_removes_it_first(run: Run) -> None:
    """And a run that begins anew under the same id sees nothing of the old one."""
    order: list[str] = []

    def note(params: dict[str, object], **_: object) -> None:
        keys = [at["Key"] for at in params["Delete"]["Objects"]]  # type: ignore[index]  # boto3's own shape
        order.extend(keys)

    run.client.meta.events.register("provide-client-params.s3.DeleteObjects", note)
    await run.store.clear("run")
    assert order[0] == run.keys.snapshot("run")
    assert order[1:31] == [run.keys.entry("run", record.step_id, 0) for record in reversed(run.records)]
    new = [await run.store.append(entry(f"step-{number}")) for number in range(12)]
    assert await run.store.list("run") == new


async def test_one_written_while_the_run_is_cleared_does_not_stay(run: Run, moto_server: S3Server) -> None:
    """Cleared data is gone: a reader that writes its snapshot after the clear takes it away again."""
    run.client.delete_object(Bucket=BUCKET, Key=run.keys.snapshot("run"))
    loop = asyncio.get_running_loop()

    def cleared_before(line: Line) -> None:
        if line.request.operation == "PUT":
            asyncio.run_coroutine_threadsafe(run.store.clear("run"), loop).result()
        line.send(line.forward())

    with Proxy(moto_server.port) as proxy:
        client = client_of(proxy.endpoint)
        proxy.fault = cleared_before
        async with S3Store(client, BUCKET, run.prefix, probe=False) as reader:
            reader._reader.smallest_snapshot = 10
            assert await reader.list("run") == run.records
        client.close()
    assert "Contents" not in run.client.list_objects_v2(Bucket=BUCKET, Prefix=run.prefix)


async def test_entries_with_line_breaks_are_kept(run: Run) -> None:
    """JSON that was laid out by hand survives the snapshot, which has a line an entry."""
    key = run.keys.entry("run", "step-7", 0)
    body = run.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    run.put(key, body.replace(b',"step_id"', b',\n  "step_id"'))
    run.client.delete_object(Bucket=BUCKET, Key=run.keys.snapshot("run"))
    for _ in range(2):
        assert await run.store.list("run") == run.records


async def test_a_large_one_holds_what_fits(run: Run) -> None:
    """The oldest entries; it is not written again and again for those that don't fit."""
    run.client.delete_object(Bucket=BUCKET, Key=run.keys.snapshot("run"))
    run.store._reader.largest_snapshot = 20 * len(run.snapshot_line())
    assert await run.store.list("run") == run.records
    run.requests.clear()
    assert await run.store.list("run") == run.records
    found = run.requests.taken()
    assert found["list"] == 1
    assert 8 <= found["get"] <= 14


async def test_an_object_that_is_no_entry_is_an_error(run: Run) -> None:
    """It is named, nothing is skipped, and the run can still be cleared."""
    key = run.keys.entry("run", "step-7", 0)
    run.put(key, b"{")
    with pytest.raises(CorruptLog, match=r"step-7/9999999999\.r0\.json"):
        await run.store.list("run")
    with pytest.raises(CorruptLog, match="step-7"):
        await run.store.get("run", "step-7")
    await run.store.clear("run")
    assert await run.store.list("run") == []


async def test_an_empty_object_is_an_error(run: Run) -> None:
    """Which says that it is empty."""
    run.put(run.keys.entry("run", "step-7", 0), b"")
    with pytest.raises(CorruptLog, match=r"step-7/9999999999\.r0\.json' is empty"):
        await run.store.list("run")
    with pytest.raises(CorruptLog, match=r"step-7/9999999999\.r0\.json' is empty"):
        await run.store.get("run", "step-7")


async def test_an_object_that_is_no_text_is_an_error(run: Run) -> None:
    key = run.keys.entry("run", "step-7", 0)
    run.put(key, run.client.get_object(Bucket=BUCKET, Key=key)["Body"].read().replace(b"step-7", b"step-\xff"))
    with pytest.raises(CorruptLog, match="step-7"):
        await run.store.list("run")


async def test_an_object_at_the_wrong_key_is_an_error(run: Run) -> None:
    """Copied or renamed by hand, it would stand for another step."""
    body = run.client.get_object(Bucket=BUCKET, Key=run.keys.entry("run", "step-7", 0))["Body"].read()
    run.put(run.keys.entry("run", "copy", 0), body)
    with pytest.raises(CorruptLog, match="belongs at"):
        await run.store.list("run")
