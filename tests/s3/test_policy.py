"""The policy in the documentation is enough, and nothing of it can be left out."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from durable_core import StoreError
from durable_s3 import S3Store
from tests.s3.support import entry
from tests.servers.s3 import BUCKET, S3Server, ministack

pytestmark = pytest.mark.asyncio

PAGE = Path(__file__).parents[2] / "docs" / "stores" / "s3.md"
ACTIONS = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"]


def documented(prefix: str, *, without: str = "") -> dict[str, Any]:
    """The policy as the page has it, for this bucket and prefix, perhaps with one right left out."""
    (text,) = [block for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Statement" in block]
    policy: dict[str, Any] = json.loads(text.replace("my-bucket", BUCKET).replace("my-prefix", prefix))
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        statement["Action"] = [action for action in actions if action != without]
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
    return policy


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that checks signatures and policies, conditions as well."""
    with ministack(auth=True) as running:
        yield running


@asynccontextmanager
async def open_as(server: S3Server, policy: dict[str, Any], prefix: str) -> AsyncIterator[S3Store]:
    """Open a store as a new user who has this policy and no other."""
    iam = server.client(service="iam")
    name = f"user-{uuid4().hex[:12]}"
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="durable", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
    )
    try:
        async with S3Store(client, BUCKET, prefix) as store:
            store._honoured = set()
            store._reader.smallest_snapshot = 10
            yield store
    finally:
        client.close()


async def everything(store: S3Store, run_id: str) -> None:
    """Use all that a store offers."""
    records = [await store.append(entry(f"step-{number}", run_id=run_id)) for number in range(12)]
    assert await store.append(entry("step-0", run_id=run_id)) == records[0]
    assert await store.get(run_id, "step-3") == records[3]
    assert await store.get(run_id, "missing") is None
    for _ in range(2):
        assert await store.list(run_id) == records
    assert [found async for found in store.runs()] == [run_id]
    async with store.lock(run_id) as lease:
        lease.check()
    await store.set_wakeup(run_id, "flow", datetime.now(UTC) - timedelta(minutes=1))
    taken = await store.take_wakeups(["flow"], limit=1, visibility_timeout=timedelta(minutes=1))
    assert [wakeup.run_id for wakeup in taken] == [run_id]
    await store.clear_wakeups(taken)
    async with store.lock(run_id):
        await store.clear(run_id)
    assert await store.list(run_id) == []


async def test_a_store_with_only_these_rights_does_everything(server: S3Server) -> None:
    """Probe, append, get, list with its snapshot, runs, lock, wake-ups and clear, for runs whose ids are cut as for others."""
    prefix = uuid4().hex
    async with open_as(server, documented(prefix), prefix) as store:
        await everything(store, "run")
        await everything(store, "é" * 200)
        keys = server.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]
        assert {at["Key"].split("/")[1] for at in keys} == {"locks", "probe.json"}


@pytest.mark.parametrize("missing", ACTIONS)
async def test_each_right_is_needed(server: S3Server, missing: str) -> None:
    """Without any one of them something is refused, by an error that names the right."""
    prefix = uuid4().hex
    async with open_as(server, documented(prefix, without=missing), prefix) as store:
        with pytest.raises(StoreError, match=rf"{missing} is not allowed"):
            await everything(store, "run")


async def test_it_gives_nothing_beside_the_prefix(server: S3Server) -> None:
    """Neither to read, to write, nor to list."""
    prefix, elsewhere = uuid4().hex, uuid4().hex
    async with open_as(server, documented(prefix), elsewhere) as store:
        for call in (store.append(entry()), store.list("run"), store.get("run", "step"), store.clear("run")):
            with pytest.raises(StoreError, match="is not allowed"):
                await call


async def test_a_reader_needs_no_right_to_write(server: S3Server) -> None:
    """Who may only list and get can look at runs, of any length; what fails is the append."""
    prefix = uuid4().hex
    async with open_as(server, documented(prefix), prefix) as writer:
        records = [await writer.append(entry(f"step-{number}")) for number in range(12)]
    read_only = documented(prefix, without="s3:PutObject")
    async with open_as(server, read_only, prefix) as reader:
        for _ in range(2):
            assert await reader.list("run") == records
        assert await reader.get("run", "step-0") == records[0]
        assert [run_id async for run_id in reader.runs()] == ["run"]
        with pytest.raises(StoreError, match="s3:PutObject is not allowed"):
            await reader.append(entry("another"))
