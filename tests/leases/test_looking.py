"""Looking from outside: who holds a run, and what is newer than what is known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from durable_core import RunBusy, StepRecord, StoreError, open_store
from durable_core.store import holder_of, lock_of, polling_of
from durable_core.testing import OpenStore
from durable_core.testing._processes import Child, hold_lock
from tests.servers.redis import KEEPING, redis_cluster

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with redis_cluster(*KEEPING) as nodes:
        yield nodes[0].url


@pytest.fixture(params=["redis", "cluster", "waitaof", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a store with nothing in it."""
    if request.param in ("redis", "waitaof"):
        return f"{request.getfixturevalue('redis_url')}{'&waitaof=1,0,5000' if request.param == 'waitaof' else ''}"
    if request.param == "cluster":
        return f"{request.getfixturevalue('cluster_url')}?cluster=true&prefix=t-{uuid4().hex}"
    return f"{request.getfixturevalue('ministack_server').url(uuid4().hex)}&probe=false"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Any]:
    async with open_store(url) as opened:
        yield opened


def entry(run_id: str, step_id: str, revision: int = 0, **fields: Any) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, **fields)


async def test_who_holds_a_run_is_told_without_taking_it(store: Any, url: str) -> None:
    """As `RunBusy` would say it, of one run or of many; a run that nobody holds is left out."""
    assert holder_of(store) is store
    assert await store.holder("run 1") is None
    assert await store.holders([]) == {}
    async with open_store(url) as other, lock_of(other).lock("run 1"), lock_of(other).lock("run 250"):  # type: ignore[union-attr]
        with pytest.raises(RunBusy) as busy:
            async with store.lock("run 1"):
                pass
        told = await store.holder("run 1")
        assert (told.name, told.since) == (busy.value.holder, busy.value.since)
        asked = [f"run {number}" for number in range(60)]
        assert await store.holders({*asked, "run 250"}) == {"run 1": told, "run 250": await store.holder("run 250")}
    assert await store.holders(["run 1", "run 250"]) == {}


async def test_a_process_that_was_killed_holds_nothing(url: str) -> None:
    open_: OpenStore = partial(open_store, f"{url}&lease=600")
    async with open_() as store, Child(hold_lock, open_, "run") as child:
        holders = holder_of(store)
        assert holders is not None
        assert await child.receive() == "held"
        assert await holders.holder("run") is not None
        await child.kill()
        assert await holders.holder("run") is None


async def test_only_what_is_newer_is_returned(store: Any) -> None:
    """Of each step its newest entry, where that is above the revision that is known; -1 knows of none."""
    assert polling_of(store) is store
    assert await store.newer([]) == []
    wanted = [entry("a", "one"), entry("a", "one", 1), entry("a", "$cancel"), entry("b", "one"), entry("b", "one", 12)]
    for record in wanted:
        await store.append(record)

    async def newer(*known: tuple[str, str, int]) -> set[tuple[str, str, int]]:
        found = await store.newer(known)
        assert all(record in wanted for record in found)
        return {(record.run_id, record.step_id, record.revision) for record in found}

    assert await newer(("a", "one", -1), ("a", "two", -1), ("c", "one", -1)) == {("a", "one", 1)}
    assert await newer(("a", "one", 0), ("a", "$cancel", -1), ("b", "one", 1)) == {
        ("a", "one", 1),
        ("a", "$cancel", 0),
        ("b", "one", 12),
    }
    assert await newer(("a", "one", 1), ("a", "$cancel", 0), ("b", "one", 12), ("b", "one", 20)) == set()
    many = [(f"none {number}", "one", -1) for number in range(120)]
    assert await newer(*many, ("b", "one", 0)) == {("b", "one", 12)}


async def test_damage_that_is_newer_is_an_error_with_its_place(redis_url: str, ministack_server: Any) -> None:
    async with open_store(f"{ministack_server.url(uuid4().hex)}&probe=false") as store:
        key = store._keys.entry("run", "step", 3)  # type: ignore[attr-defined]  # an S3Store
        ministack_server.client().put_object(Bucket="durable-tests", Key=key, Body=b"{")
        assert await store.newer([("run", "step", 3)]) == []  # type: ignore[attr-defined]  # as above
        with pytest.raises(StoreError, match=r"step/9999999996\.r3\.json"):
            await store.newer([("run", "step", 2)])  # type: ignore[attr-defined]  # as above
