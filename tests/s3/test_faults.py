"""Faults on the way to S3 and back, made by a proxy: nothing is lost, and what can't be done is said."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from durable_core import Runner, StoreError, open_store
from durable_core.errors import ResultNotRecorded
from durable_core.testing._contract.flows import flow_entry
from durable_s3 import S3Store, _bucket, _entry, _url
from durable_s3._keys import Keys
from tests.s3 import proxy as faults
from tests.s3.proxy import Answer, Fault, Line, Proxy
from tests.s3.support import entry, open_at
from tests.servers.s3 import BUCKET, S3Server, ministack

BEFORE_OR_AFTER = {
    "500": faults.refused(500, "InternalError"),
    "503": faults.refused(503, "SlowDown"),
    "409": faults.refused(409, "ConditionalRequestConflict"),
    "request timeout": faults.refused(400, "RequestTimeout"),
    "cut before": faults.cut_before,
    "cut after": faults.cut_after,
    "answer lost": faults.answer_lost,
    "expired": faults.refused(400, "ExpiredToken"),
}
IN_AN_ANSWER = {
    "truncated": faults.truncated,
    "reset in the body": faults.reset_in_body,
    "cut in the head": faults.cut_in_head,
}


@pytest.fixture
def proxy(ministack_server: S3Server) -> Iterator[Proxy]:
    with Proxy(ministack_server.port) as running:
        yield running


@pytest.fixture
async def store(proxy: Proxy) -> AsyncIterator[S3Store]:
    """A store behind the proxy that waits half a second for an answer."""
    async with open_at(proxy.endpoint, uuid4().hex, read_timeout=0.5, probe=False) as opened:
        yield opened


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", BEFORE_OR_AFTER.values(), ids=BEFORE_OR_AFTER)
async def test_an_append_survives(proxy: Proxy, store: S3Store, fault: Fault) -> None:
    """The record is there once, is recognised as ours, and whoever comes later gets it."""
    record = entry(result=b'"mine"')
    proxy.once("PUT", fault, times=2)
    assert await store.append(record) == record
    assert proxy.operations["PUT"] == 3
    assert await store.append(entry(result=b'"another"')) == record
    assert await store.list("run") == [record]


@pytest.mark.asyncio
@pytest.mark.parametrize("operation", ["GET", "LIST"])
@pytest.mark.parametrize("fault", {**BEFORE_OR_AFTER, **IN_AN_ANSWER}.values(), ids={**BEFORE_OR_AFTER, **IN_AN_ANSWER})
async def test_reading_survives(proxy: Proxy, store: S3Store, operation: str, fault: Fault) -> None:
    """Half of an answer is never taken for a whole one."""
    records = [await store.append(entry(f"step-{number}", result=b'"%d"' % number)) for number in range(5)]
    proxy.once(operation, fault, times=2)
    assert await store.list("run") == records
    proxy.once(operation, fault, times=2)
    assert await store.get("run", "step-3") == records[3]


@pytest.mark.asyncio
async def test_no_request_waits_for_leave_to_send_its_body(proxy: Proxy) -> None:
    """botocore reads for ever where the answer `100 Continue` is cut, so nothing asks for one."""
    asked: list[str] = []

    def note(line: Line) -> None:
        asked.extend(name for name in line.request.headers if name.lower() == "expect")
        line.send(line.forward())

    proxy.fault = note
    async with open_store(proxy.url(uuid4().hex)) as opened:
        await opened.append(entry())
    assert proxy.operations["PUT"] >= 1
    assert not asked


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [*BEFORE_OR_AFTER.values(), faults.cut_in_head], ids=[*BEFORE_OR_AFTER, "cut in the head"])
async def test_clearing_survives(proxy: Proxy, store: S3Store, fault: Fault) -> None:
    for number in range(5):
        await store.append(entry(f"step-{number}"))
    proxy.once("DELETE", fault, times=2)
    await store.clear("run")
    assert await store.list("run") == []


@pytest.mark.asyncio
async def test_a_damaged_put_is_refused_and_sent_again(proxy: Proxy) -> None:
    """A checksum goes with every PUT, also where boto3 adds none: what arrives damaged is not stored."""
    record = entry(result=b'"the value"')
    async with open_store(f"{proxy.url(uuid4().hex)}&probe=false") as store:
        proxy.once("PUT", faults.damaged)
        await store.append(record)
        assert proxy.operations["PUT"] == 2
        assert await store.list("run") == [record]


@pytest.mark.asyncio
async def test_a_loser_survives_too(proxy: Proxy, store: S3Store) -> None:
    """Reading the holder of a slot is tried again as well."""
    record = await store.append(entry())
    proxy.once("GET", faults.truncated, times=2)
    assert await store.append(entry()) == record


@pytest.mark.asyncio
async def test_a_store_that_stays_away_is_a_clear_error(proxy: Proxy, store: S3Store) -> None:
    """Within bounded time, from the last error, and saying who did not answer; afterwards everything works again."""
    store._bucket.patience = 1.0
    proxy.fault = faults.refused(503, "SlowDown")
    with pytest.raises(StoreError, match=r"s3:PutObject on s3://.*step.*127\.0\.0\.1.* is unavailable: .*SlowDown") as caught:
        await store.append(entry())
    assert caught.value.__cause__ is not None
    proxy.fault = None
    record = entry()
    assert await store.append(record) == record


@pytest.mark.asyncio
async def test_a_store_that_goes_away_hides_no_run(proxy: Proxy) -> None:
    """The index passes over a run that is damaged, and not over one that it could not read."""

    def refuse_one(line: Line) -> None:
        if line.request.operation == "GET" and line.request.key.startswith(store._keys.run("two")):
            line.refuse(503, "SlowDown")
        else:
            line.send(line.forward())

    async with open_at(proxy.endpoint, uuid4().hex, probe=False) as store:
        store._bucket.patience = 0.2
        for run_id in ("one", "two"):
            await store.append(flow_entry(run_id))
        proxy.fault = refuse_one
        with pytest.raises(StoreError, match="is unavailable.*SlowDown"):
            await store.flows()


@pytest.mark.asyncio
async def test_a_clear_that_stopped_half_way_is_repeated(proxy: Proxy, store: S3Store) -> None:
    """What is left is a beginning of the run, never a hole, and the next clear removes it."""
    store._bucket.patience = 0.2
    store._bucket.delete_batch = 3
    records = [await store.append(entry(f"step-{9 - number}")) for number in range(10)]
    for requests in (1, 2, 3):
        # The first one removes the snapshot.
        proxy.once("DELETE", faults.refused(503, "SlowDown"), skip=requests, times=1000)
        with pytest.raises(StoreError):
            await store.clear("run")
        left = await store.list("run")
        assert left == records[: len(left)]
        assert len(left) == max(0, 10 - 3 * (requests - 1) * requests // 2)
    proxy.fault = None
    await store.clear("run")
    assert await store.list("run") == []


@pytest.mark.asyncio
async def test_what_one_request_leaves_is_deleted_before_older_entries(proxy: Proxy, store: S3Store) -> None:
    """S3 may delete a part of what a request names and report errors for the rest: that is asked for again first."""
    store._bucket.delete_batch = 3
    records = [await store.append(entry(f"step-{number}")) for number in range(6)]
    named: list[list[str]] = []

    def in_part(line: Line) -> None:
        keys = re.findall(r"step-\d", line.request.body.decode())
        named.append(keys)
        if len(named) == 2:  # the first one removes the snapshot
            (middle,) = re.findall(rb"<Key>[^<]*step-4[^<]*</Key>", line.request.body)
            line.forward(body=line.request.body.replace(b"<Object>" + middle + b"</Object>", b""), without="content-md5")
            error = b"<Error>" + middle + b"<Code>InternalError</Code><Message>as the test asked</Message></Error>"
            line.send(Answer(200, [("Content-Type", "application/xml")], b"<DeleteResult>" + error + b"</DeleteResult>"))
        else:
            line.send(line.forward())

    proxy.once("DELETE", in_part, times=100)
    await store.clear("run")
    newest, oldest = ["step-5", "step-4", "step-3"], ["step-2", "step-1", "step-0"]
    assert named == [[], newest, newest, oldest, []]
    assert await store.list("run") == []
    assert len(records) == 6


@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["get", "list"])
async def test_an_object_that_is_listed_and_never_found_is_a_clear_error(proxy: Proxy, store: S3Store, call: str) -> None:
    """A server whose LIST shows what GET does not find is named, instead of being asked for ever."""
    await store.append(entry())
    proxy.once("GET", faults.refused(404, "NoSuchKey"), times=1000)
    with pytest.raises(StoreError, match=r"step/9999999999\.r0\.json is listed .* but GET does not find it"):
        await asyncio.wait_for(store.get("run", "step") if call == "get" else store.list("run"), 30)
    assert proxy.operations["GET"] == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["get", "list"])
async def test_an_entry_that_is_cleared_while_it_is_read_is_gone(proxy: Proxy, store: S3Store, call: str) -> None:
    """LIST had shown it; so had it shown the one that was written and cleared after it."""
    await store.append(entry())
    client = store._connection._client
    key = Keys(store._keys.root).entry("run", "step", 0)
    again = 2

    def cleared(line: Line) -> None:
        nonlocal again
        client.delete_object(Bucket=BUCKET, Key=key)
        answer = line.forward()
        if again := again - 1:
            client.put_object(Bucket=BUCKET, Key=key, Body=_entry.encode(entry(), 7))
        line.send(answer)

    proxy.once("GET", cleared, times=1000)
    found = store.get("run", "step") if call == "get" else store.list("run")
    assert not await asyncio.wait_for(found, 30)
    assert proxy.operations["GET"] == 2


def test_a_store_that_stays_away_is_known_before_its_runner_gives_up() -> None:
    """Also where the last request, begun just in time, gets no connection and then no answer."""
    given = inspect.signature(Runner).parameters["store_timeout"].default
    assert _bucket.Bucket.patience + _url._CONNECT_SECONDS + _url._READ_SECONDS < given


@pytest.mark.asyncio
async def test_an_endpoint_that_ignores_if_none_match_is_refused(proxy: Proxy) -> None:
    """Before anything is stored or run, by two small requests."""
    proxy.fault = faults.careless
    async with open_store(proxy.url(uuid4().hex)) as store:
        for _ in range(2):
            with pytest.raises(StoreError, match="ignores If-None-Match"):
                await store.list("run")
        assert set(proxy.operations) == {"PUT"}
        with pytest.raises(StoreError, match="ignores If-None-Match"):
            await store.append(entry())
    async with open_store(f"{proxy.url(uuid4().hex)}&probe=false") as store:
        await store.append(entry())


@pytest.mark.asyncio
async def test_an_endpoint_that_knows_no_conditional_put_is_refused(proxy: Proxy) -> None:
    proxy.once("PUT", faults.refused(501, "NotImplemented"))
    async with open_store(proxy.url(uuid4().hex)) as store:
        with pytest.raises(StoreError, match="ignores If-None-Match"):
            await store.append(entry())


class Desk:
    """Lets requests through that carry the valid access key, and refuses others as expired."""

    def __init__(self, valid: str) -> None:
        self.valid = valid

    def __call__(self, line: Line) -> None:
        if f"Credential={self.valid}/" in line.request.headers.get("Authorization", ""):
            line.send(line.forward())
        else:
            line.refuse(400, "ExpiredToken")


@pytest.mark.asyncio
async def test_credentials_that_expire_in_mid_run(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are renewed where boto3 finds them the run goes on; no step runs twice, and nothing is lost."""
    profile = tmp_path / "credentials"
    profile.write_text("[worker]\naws_access_key_id = first\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    desk = proxy.fault = Desk("first")
    ran: list[str] = []

    def renew() -> None:
        profile.write_text("[worker]\naws_access_key_id = second\naws_secret_access_key = secret\n")

    def work(name: str) -> str:
        ran.append(name)
        if name == "b":
            desk.valid = "second"
            asyncio.run_coroutine_threadsafe(later(), loop)
        return name

    async def later() -> None:
        while proxy.operations["PUT"] < seen_puts + 3:
            await asyncio.sleep(0.01)
        renew()

    loop = asyncio.get_running_loop()
    async with open_store(f"{proxy.url(uuid4().hex)}&profile=worker") as store, Runner(store, "run") as runner:
        assert await runner.step("a", work, "a") == "a"
        seen_puts = proxy.operations["PUT"]
        assert await runner.step("b", work, "b") == "b"
        assert await runner.step("c", work, "c") == "c"
        assert ran == ["a", "b", "c"]
        assert [record.step_id for record in await store.list("run")] == ["a", "b", "c"]


@pytest.mark.asyncio
async def test_credentials_that_stay_expired_are_a_clear_error(
    proxy: Proxy, store: S3Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The step's result is not lost: it is in the error, and is recorded first once the store is back; the step ran once."""
    store._bucket.patience = 0.3
    ran = 0

    def work() -> int:
        nonlocal ran
        ran += 1
        proxy.fault = faults.refused(400, "ExpiredToken")
        return 7

    runner = Runner(store, "run", store_timeout=2)
    with pytest.raises(ResultNotRecorded) as caught:
        await runner.step("work", work)
    assert caught.value.result == 7
    assert "the credentials have expired" in caplog.text
    proxy.fault = None
    assert await runner.step("next", lambda: 8) == 8
    assert ran == 1
    assert [record.step_id for record in await store.list("run")] == ["work", "next"]


@pytest.mark.asyncio
async def test_a_server_that_is_killed_keeps_what_was_acknowledged() -> None:
    """And appends that were under way when it died land once it is back."""
    with ministack() as server:
        async with open_at(server.endpoint, "logs", probe=False) as store:
            before = [await store.append(entry(f"before-{number}")) for number in range(5)]
            server.kill()
            under_way = [asyncio.create_task(store.append(entry(f"under-way-{number}"))) for number in range(5)]
            await asyncio.sleep(0)
            server.start()  # on this thread: with a worker thread, the server would end as well
            after = await asyncio.gather(*under_way)
            listed = await store.list("run")
            assert listed[:5] == before
            assert sorted(record.id for record in listed[5:]) == sorted(record.id for record in after)
            assert (await store.append(entry("before-0"))).id == before[0].id


@pytest.mark.asyncio
async def test_a_lock_that_a_close_overtakes(proxy: Proxy) -> None:
    """A store that is closed while its endpoint is still probed takes no lock: nobody would end the thread that renews it."""
    asked, go_on = threading.Event(), threading.Event()

    def wait(line: Line) -> None:
        asked.set()
        assert go_on.wait(10)
        line.send(line.forward())

    async def take(store: S3Store) -> None:
        async with store.lock("run"):
            pass

    proxy.once("PUT", wait, skip=1)  # the last request of the probe
    async with S3Store.from_url(proxy.url(uuid4().hex)) as opened:
        taking = asyncio.create_task(take(opened))
        await asyncio.to_thread(asked.wait, 10)
        asyncio.get_running_loop().call_soon(go_on.set)  # closing waits for the request
    with pytest.raises(StoreError, match="is closed"):
        await taking
    assert opened._leases._thread is None
