"""What can't work says so in one clear error, and ids of any kind come back as they were."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from durable_core import CorruptLog, StoreError, open_store
from durable_core.stores.lines import heads_of
from durable_s3 import S3Store
from tests.s3 import proxy as faults
from tests.s3.proxy import Proxy
from tests.s3.support import client_of, entry, open_at
from tests.servers.ports import free_port
from tests.servers.s3 import BUCKET, S3Server

HOSTILE = ["a/b", "..", ".", "../../x", " spaced  out ", "👩‍👩‍👧", "é" * 256, "x" * 512, "%2F", "a\\b", "💣" * 128, "~!*'()"]


@pytest.mark.asyncio
async def test_ids_of_any_kind_come_back(s3_url: str) -> None:
    """As run ids and as step ids, in entries, in the list of runs, and in locks."""
    async with open_store(s3_url) as store:
        assert isinstance(store, S3Store)
        for id_ in HOSTILE:
            record = await store.append(entry(id_, run_id=id_))
            assert await store.get(id_, id_) == record
            assert await store.list(id_) == [record]
            async with store.lock(id_) as lease:
                lease.check()
        assert {run_id async for run_id in store.runs()} == set(HOSTILE)
        for id_ in HOSTILE:
            await store.clear(id_)
        assert [run_id async for run_id in store.runs()] == []


@pytest.mark.asyncio
async def test_a_missing_bucket_is_named(s3_url: str) -> None:
    url = s3_url.replace(s3_url.split("/")[2], f"durable-missing-{uuid4().hex[:12]}", 1)
    async with open_store(url) as store:
        for call in (partial(store.append, entry()), partial(store.list, "run"), partial(store.get, "run", "step")):
            with pytest.raises(StoreError, match=r"durable-missing-.*the bucket does not exist at .*; create it, or"):
                await call()


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    async with open_at(endpoint, "logs", probe=False) as store:
        store._bucket.patience = 0.2
        with pytest.raises(StoreError, match=rf"{endpoint} is unavailable: Could not connect"):
            await store.list("run")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            403,
            "AccessDenied",
            r"AccessDenied: s3:PutObject is not allowed; grant the policy that the store's documentation shows",
        ),
        (403, "InvalidAccessKeyId", "refuses the credentials; check the profile or environment"),
        (403, "SignatureDoesNotMatch", "refuses the credentials; check the profile or environment"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong; set it"),
        (301, "PermanentRedirect", r"the bucket is in another region; write \?region="),
        (400, "AuthorizationHeaderMalformed", r"the bucket is in another region; write \?region="),
        (400, "InvalidArgument", "InvalidArgument"),
    ],
)
async def test_what_s3_refuses_is_explained(moto_server: S3Server, status: int, code: str, said: str) -> None:
    """At once, from boto3's own error."""
    with Proxy(moto_server.port) as proxy:
        proxy.once("PUT", faults.refused(status, code), times=10)
        async with open_at(proxy.endpoint, "logs", probe=False) as store:
            with pytest.raises(StoreError, match=said) as caught:
                await store.append(entry())
            assert caught.value.__cause__ is not None
        assert proxy.operations["PUT"] <= 2  # boto3 follows a bucket to its region by itself


@pytest.mark.asyncio
@pytest.mark.parametrize("owned", [True, False])
async def test_an_endpoint_that_redirects_for_ever_is_explained(moto_server: S3Server, owned: bool) -> None:
    """Boto3 asks where the bucket is, is redirected, and asks again."""
    with Proxy(moto_server.port) as proxy:
        proxy.fault = faults.refused(301, "PermanentRedirect")
        opened = open_store(f"{proxy.url('logs')}&probe=false") if owned else open_at(proxy.endpoint, "logs", probe=False)
        async with opened as store:
            with pytest.raises(StoreError, match="redirects every request"):
                await store.append(entry())


@pytest.mark.asyncio
async def test_folders_that_are_no_runs_are_passed_over(moto_server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    """What others put beside the runs doesn't hide them; the log names it."""
    prefix, strange = uuid4().hex, ["%FF", "a b", "%01", "%2e"]
    client = client_of(moto_server.endpoint)
    for name in strange:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/runs/{name}/object", Body=b"")
    client.close()
    async with open_at(moto_server.endpoint, prefix, probe=False) as store:
        await store.append(entry(run_id="%FF"))
        assert [run_id async for run_id in store.runs()] == ["%FF"]
    assert all(f"{name}/' in bucket" in caplog.text for name in strange)


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [b"hi", b"", None], ids=["no entry", "empty", "a copied entry"])
async def test_folders_that_look_cut_are_passed_over(
    moto_server: S3Server, caplog: pytest.LogCaptureFixture, body: bytes | None
) -> None:
    """Where an id is too long for a folder's name, the entries say it: only if the folder is that run's own."""
    prefix, long = uuid4().hex, "x" * 512
    client = client_of(moto_server.endpoint)
    async with open_at(moto_server.endpoint, prefix, probe=False) as store:
        for run_id in ("good", long):
            await store.append(entry(run_id=run_id))
        if body is None:
            key = store._keys.entry("good", "step", 0)
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/runs/hello!/object", Body=body)
        assert [run_id async for run_id in store.runs()] == ["good", long]
    client.close()
    assert "hello!/' in bucket" in caplog.text


@pytest.mark.asyncio
async def test_no_credentials_is_explained(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    async with open_store(moto_server.url("logs")) as store:
        with pytest.raises(StoreError, match="give credentials where boto3 looks for them"):
            await store.list("run")


@pytest.mark.asyncio
async def test_a_profile_that_is_not_there_is_named(moto_server: S3Server, tmp_path: Path) -> None:
    async with open_store(f"{moto_server.url('logs')}&profile=nobody") as store:
        with pytest.raises(StoreError, match=r"can't be opened: The config profile \(nobody\) could not be found"):
            await store.list("run")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "has no bucket"),
        ("s3:///prefix", "has no bucket"),
        ("s3:bucket", "^a URL of the scheme 's3' begins with s3://bucket"),
        ("s3:/key:hush@bucket/prefix?region=x", "^a URL of the scheme 's3' begins with s3://bucket"),
        ("s3://bucket:9000/prefix", r"an address as \?endpoint_url="),
        ("s3://key:secret@bucket/prefix", "credentials don't belong in a URL"),
        ("s3://bucket?aws_access_key_id=AKIA", "credentials don't belong in a URL"),
        ("s3://bucket?secret=hush", "credentials don't belong in a URL"),
        ("s3://bucket?session_token=hush", "credentials don't belong in a URL"),
        ("s3://bucket?endpoint_url=http://me:hush@host", "credentials don't belong in a URL"),
        ("s3://bucket?endpoint_url=http%3A%2F%2Fme%3Ahush%40host", "credentials don't belong in a URL"),
        ("s3://key%3Ahush@bucket/prefix", "credentials don't belong in a URL"),
        ("s3://bucket?endpoint_url=localhost:9000", "expected http:// or https://"),
        ("s3://bucket?regoin=eu-central-1", "Did you mean 'region'"),
        ("s3://bucket?addressing_style=dns", "expected one of auto, path, virtual"),
        ("s3://bucket?max_connections=0", "whole number of at least 1"),
        ("s3://bucket?probe=maybe", "expected true or false"),
        ("s3://bucket?lease=0.1", "too short"),
        ("s3://bucket?storage_class=GLACIER", "can't be read immediately"),
        ("s3://bucket/a/../b", "prefix"),
    ],
)
def test_a_url_that_cant_be_meant_is_refused(url: str, said: str) -> None:
    """When the store is made, without connecting; what may be a secret is not repeated."""
    with pytest.raises(StoreError, match=said) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.asyncio
async def test_the_urls_options_reach_every_put(moto_server: S3Server) -> None:
    """Encryption goes with all objects, the storage class with those that hold entries."""
    prefix = uuid4().hex
    options = "sse=aws:kms&kms_key_id=alias/logs&storage_class=STANDARD_IA&addressing_style=path&max_connections=3"
    async with open_store(f"{moto_server.url(prefix)}&{options}") as store:
        assert isinstance(store, S3Store)
        assert repr(store) == f"<S3Store s3://{BUCKET}/{prefix}/>"
        await store.append(entry())
        async with store.lock("run"):
            pass
    client = client_of(moto_server.endpoint)
    heads = {
        at["Key"].split("/")[1]: client.head_object(Bucket=BUCKET, Key=at["Key"])
        for at in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    }
    client.close()
    assert {head["ServerSideEncryption"] for head in heads.values()} == {"aws:kms"}
    assert {head["SSEKMSKeyId"] for head in heads.values()} == {"alias/logs"}
    assert {name: head.get("StorageClass") for name, head in heads.items()} == {
        "runs": "STANDARD_IA",
        "locks": None,
        "probe.json": None,
    }


DEEP = (
    b'{"order":1,"v":1,"run_id":"run","step_id":"step","revision":0,"status":"success","kind":"step","name":"step","result":%s}'
)
DAMAGED = {
    "deep": DEEP % (b"[" * 1_000_000 + b"]" * 1_000_000),
    "deep note": DEEP.replace(b"result", b"note") % (b"[" * 1_000_000 + b"]" * 1_000_000),
    "beyond the calendar": DEEP.replace(b"result", b"until") % b'"9999-12-31T23:59:59-05:00"',
    "another type": DEEP.replace(b'"kind":"step"', b'"kind":7') % b"1",
}


@pytest.mark.asyncio
@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_entry_is_an_error_with_its_key(moto_server: S3Server, body: bytes) -> None:
    """Whatever an object holds, every reader answers with an error that names it, and none with another."""
    prefix = uuid4().hex
    client = moto_server.client()
    async with open_at(moto_server.endpoint, prefix, probe=False) as store:
        client.put_object(Bucket=BUCKET, Key=store._keys.entry("run", "step", 0), Body=body)

        async def listed() -> None:
            records = await store.list("run")
            list(heads_of(records))
            list(records)

        for read in (listed, lambda: store.get("run", "step"), lambda: store.append(entry())):
            with pytest.raises(CorruptLog, match=r"step/9999999999\.r0\.json"):
                await read()
    client.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff", b'{"since":"9999-12-31T23:59:59-05:00"}', b'{"run_id":7}'])
async def test_a_damaged_lock_object_is_an_error_with_its_key(moto_server: S3Server, body: bytes) -> None:
    client = moto_server.client()
    async with open_at(moto_server.endpoint, uuid4().hex, probe=False) as store:
        client.put_object(Bucket=BUCKET, Key=store._keys.lease("run", 1), Body=body)
        with pytest.raises(StoreError, match=r"locks/run/9999999998\.n1\.json"):
            async with store.lock("run"):
                pass
    client.close()


@pytest.mark.asyncio
async def test_a_stranger_among_the_lock_objects_is_an_error_with_its_key(moto_server: S3Server) -> None:
    client = moto_server.client()
    async with open_at(moto_server.endpoint, uuid4().hex, probe=False) as store:
        key = f"{store._keys.leases('run')}000-notes.txt"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
        with pytest.raises(StoreError, match="000-notes"):
            async with store.lock("run"):
                pass
    client.close()
