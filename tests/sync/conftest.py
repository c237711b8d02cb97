"""What the tests of the blocking face share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_core.sync import Store, open_store
from tests.every_store.conftest import (
    ministack_server,
    postgres_server_url,
    postgres_url,
    redis_server_url,
    redis_url,
    s3_credentials,
    s3_url,
)

__all__ = [
    "ministack_server",
    "postgres_server_url",
    "postgres_url",
    "redis_server_url",
    "redis_url",
    "s3_credentials",
    "s3_url",
]


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it didn't come within {seconds} s"
        time.sleep(0.005)


def here() -> str:
    """Name the thread that runs this."""
    return threading.current_thread().name


@pytest.fixture
def store() -> Store:
    return open_store("memory:")


@pytest.fixture(params=["memory", "file", "sqlite", "postgres", "redis", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    local = {"memory": "memory:", "file": f"file:{tmp_path / 'runs'}", "sqlite": f"sqlite:{tmp_path / 'runs.db'}"}
    return local.get(request.param) or request.getfixturevalue(f"{request.param}_url")
