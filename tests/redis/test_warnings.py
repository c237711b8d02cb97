"""A server that would lose runs is told of once, at first use."""

from __future__ import annotations

import asyncio
import re
import warnings

import pytest

from durable_core import StepRecord, open_store
from durable_redis import DataLossWarning
from tests.servers.redis import KEEPING, redis_server

pytestmark = pytest.mark.asyncio
NOTHING = ("--appendonly", "no", "--save", "")
SNAPSHOTS = "keeps snapshots only, so a crash loses everything since the last one: set appendonly to yes"


async def told(url: str) -> list[str]:
    """Use a store in every way, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with open_store(url) as store:
            await asyncio.gather(*(store.append(StepRecord(run_id="run", step_id=f"{n}")) for n in range(5)), store.list("run"))
            await store.get("run", "0")
            await store.clear("run")
    assert all(warning.category is DataLossWarning for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("options", "query", "said"),
    [
        (KEEPING, "", []),
        ((), "", [SNAPSHOTS]),  # what a Redis without settings does
        (("--appendonly", "no", "--save", "60 1"), "", [SNAPSHOTS]),
        (("--appendonly", "no", "--save", "60 1", "--maxmemory-policy", "allkeys-lru"), "", [f"{SNAPSHOTS}.*; it may evict"]),
        ((*KEEPING, "--save", ""), "", []),
        (NOTHING, "", ["keeps nothing on disk, so a restart loses every run: set appendonly to yes"]),
        ((*KEEPING, "--maxmemory-policy", "allkeys-lru"), "", ["may evict runs .*allkeys-lru"]),
        ((*KEEPING, "--maxmemory-policy", "volatile-ttl"), "", []),
        ((*KEEPING, "--maxmemory-policy", "volatile-ttl"), "?ttl=60", ["may evict runs .*volatile-ttl"]),
        ((*NOTHING, "--maxmemory-policy", "allkeys-lru"), "", ["keeps nothing .*; it may evict runs"]),
        ((*NOTHING, "--rename-command", "CONFIG", ""), "", []),
    ],
)
async def test_what_is_told(options: tuple[str, ...], query: str, said: list[str]) -> None:
    """There is one warning with all that may lose runs, and none where the server is safe or doesn't tell."""
    with redis_server(*options) as server:
        found = await told(server.url + query)
        assert len(found) == len(said)
        for warning, pattern in zip(found, said, strict=True):
            assert re.search(pattern, warning)


async def test_no_warning_where_config_is_forbidden() -> None:
    """A user who may not read the settings gets no warning, and no error."""
    with redis_server(*NOTHING) as server:
        server.command("ACL", "SETUSER", "flow", "on", ">secret", "~*", "+@all", "-config")
        assert await told(f"redis://flow:secret@127.0.0.1:{server.port}/0") == []
