"""What a store gives without being awaited, where no event loop runs."""

from __future__ import annotations

import pytest

from durable_core import StoreError, open_store


@pytest.mark.parametrize(
    ("url", "method", "arguments"),
    [
        ("postgresql://127.0.0.1:1/app", "lock", ["run"]),
        ("postgresql://127.0.0.1:1/app", "transaction", []),
        ("postgresql://127.0.0.1:1/app", "watch", ["run"]),
        ("redis://127.0.0.1:1/0", "watch", ["run"]),
    ],
)
def test_a_store_outside_of_a_loop(url: str, method: str, arguments: list[str]) -> None:
    """One clear error says what is missing, and what to do."""
    store = open_store(url)
    with pytest.raises(StoreError, match=r".* is used where no event loop is running: use it inside a coroutine"):
        getattr(store, method)(*arguments)


@pytest.mark.parametrize("url", ["file:{}/runs", "sqlite:{}/runs.db", "redis://127.0.0.1:1/0", "s3://bucket/runs"])
def test_a_lock_outside_of_a_loop(url: str, tmp_path: object) -> None:
    """It is a context that does nothing until it is entered."""
    assert hasattr(open_store(url.format(tmp_path)).lock("run"), "__aenter__")  # type: ignore[attr-defined]
