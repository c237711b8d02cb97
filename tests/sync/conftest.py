"""What the tests of the blocking face share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from durable_core.sync import Store, open_store


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
