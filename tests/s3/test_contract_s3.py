"""`S3Store` keeps the contract of a store, on every S3 that can be had."""

from functools import partial

import pytest

from durable_core import open_store
from durable_core.testing import OpenStore, StoreTests
from tests.s3.support import open_with_small_pages
from tests.servers.s3 import SERVERS

ABILITIES = frozenset({"runs", "scan", "lock", "holder", "polling"})


class TestS3Store(StoreTests):
    abilities = ABILITIES
    lock_expiry = 8.0
    long_run = 1_020

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_store, f"{s3_url}&lease=4")


@pytest.mark.parametrize("s3_url", SERVERS[-1:], indirect=True)
class TestS3StoreWithSmallPages(StoreTests):
    """Every LIST is cut into pages of seven keys."""

    abilities = ABILITIES
    lock_expiry = 8.0
    long_run = 130
    many_runs = 30

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_with_small_pages, f"{s3_url}&lease=4", 7)
