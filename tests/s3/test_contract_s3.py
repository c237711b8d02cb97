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
from durable_core.testing._contract.wakeups import WakeupTests
from tests.s3.support import open_with_small_pages
from tests.servers.s3 import SERVERS

ABILITIES = frozenset({"runs", "scan", "lock", "holder", "polling", "flows", "wakeups"})


class S3WakeupTests(WakeupTests):
    """S3 hides nothing from others: what holds instead is in test_wakeups.py."""

    many_wakeups = 40

    @pytest.mark.skip(reason="others list it all the same; the run's lock decides")
    async def test_a_taken_wakeup_is_hidden_and_shown_again(self, open_store: OpenStore) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="each store gets all that is due")
    async def test_many_are_taken_once_each(self, open_store: OpenStore) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="each process gets all that is due")
    async def test_processes_race_for_wakeups(self, open_store: OpenStore) -> None:
        """Not for this store."""


@pytest.mark.parametrize("s3_url", SERVERS[-1:], indirect=True)
class TestS3Store(S3WakeupTests, StoreTests):
    abilities = ABILITIES
    lock_expiry = 8.0
    long_run = 130  # more than a thousand, a page of S3, are in test_requests.py
    many_flows = 40

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_store, f"{s3_url}&lease=4")


@pytest.mark.parametrize("s3_url", SERVERS[:1], indirect=True)
class TestS3StoreWithSmallPages(S3WakeupTests, FlowsTests, PollingTests, ScanTests, RunsTests, ClearTests, IdTests, EntryTests):
    """Whatever reads a LIST, where every one is cut into pages of seven keys."""

    abilities = ABILITIES
    long_run = 130
    many_runs = 30
    many_flows = 20

    @pytest.fixture
    def open_store(self, s3_url: str) -> OpenStore:
        return partial(open_with_small_pages, f"{s3_url}&lease=4", 7)
