"""`RedisStore` keeps the contract of a store, on one server and on a cluster."""

from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import pytest

from durable_core import open_store
from durable_core.testing import OpenStore, StoreTests
from tests.servers.redis import KEEPING, redis_cluster

ABILITIES = frozenset({"runs", "scan", "lock", "holder", "polling", "flows", "wakeups", "watch"})


class TestRedisStore(StoreTests):
    abilities = ABILITIES
    lock_expiry = 8.0

    @pytest.fixture
    def open_store(self, redis_url: str) -> OpenStore:
        return partial(open_store, f"{redis_url}&lease=5")


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with redis_cluster(*KEEPING) as nodes:
        yield nodes[0].url


class TestRedisStoreOnCluster(StoreTests):
    abilities = ABILITIES
    lock_expiry = 8.0

    @pytest.fixture
    def open_store(self, cluster_url: str) -> OpenStore:
        return partial(open_store, f"{cluster_url}?cluster=true&lease=5&prefix=t-{uuid4().hex}")
