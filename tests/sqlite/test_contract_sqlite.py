"""`SqliteStore` keeps the contract of a store."""

from functools import partial
from pathlib import Path

import pytest

from durable_core import open_store
from durable_core.testing import OpenStore, StoreTests


class TestSqliteStore(StoreTests):
    abilities = frozenset({"runs", "scan", "lock", "holder", "polling", "flows", "wakeups", "transact"})

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return partial(open_store, f"sqlite:{(tmp_path / 'runs.db').as_posix()}")
