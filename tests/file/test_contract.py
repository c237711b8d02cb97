"""`FileStore` keeps the contract of a store, as a folder and as one log."""

from functools import partial
from pathlib import Path

import pytest

from durable_core import open_store
from durable_core.testing import OpenStore, StoreTests

ABILITIES = frozenset({"runs", "scan", "lock", "holder", "polling", "marks"})


class TestFileFolder(StoreTests):
    abilities = ABILITIES

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return partial(open_store, f"file:{(tmp_path / 'runs').as_posix()}")


class TestFileOneLog(StoreTests):
    abilities = ABILITIES

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return partial(open_store, f"file:{(tmp_path / 'runs' / 'all.jsonl').as_posix()}")
