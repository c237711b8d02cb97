"""`S3Store` keeps the contract of a store: on one S3 whole, on another with small pages."""

from functools import partial

import pytest

from durable_core import open_store
from durable_core.testing import OpenStore, StoreTests
from durable_core.testing._contract.clearing import ClearTests
from durable_core.testing._contract.entries import EntryTests
from durable_core.testing._contract.flows import FlowsTests
from durable_core.testing._contract.ids import IdTests
from durable_core.testing._contract.polling import PollingTests
from durable_core.testing._contract.reading import RunsTests, ScanTests
from tests.s3.support import open_with_small_pages
from tests.servers.s3 import SERVERS

ABILITIES = frozenset({"runs", "scan", "lock", "holder", "polling", "flows"})


@pytest.mark.parametrize("s3_url", SERVERS[-1:], indirect=True)
class TestS3Store(StoreTests):
    abilities = ABILITIES
    lock_expiry = 8.0
    long_run = 130  # more than a thousand, a page of S3, are in test_requests.py
    many_flows = 40

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_store, f"{s3_url}&lease=4")


@pytest.mark.parametrize("s3_url", SERVERS[:1], indirect=True)
class TestS3StoreWithSmallPages(FlowsTests, PollingTests, ScanTests, RunsTests, ClearTests, IdTests, EntryTests):
    """Whatever reads a LIST, where every one is cut into pages of seven keys."""

    abilities = ABILITIES
    long_run = 130
    many_runs = 30
    many_flows = 20

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_with_small_pages, f"{s3_url}&lease=4", 7)
