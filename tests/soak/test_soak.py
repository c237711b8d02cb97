"""A short soak on each store; `nox -s soak` is the long one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.soak.__main__ import STORES, Soak, soak


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows kills no process by a signal")
@pytest.mark.parametrize("store", STORES)
def test_every_run_ends_whatever_dies(store: str, tmp_path: Path) -> None:
    """Three workers are killed, and the server: every run ends as it has to, and no effect is doubled that wasn't in flight."""
    verdict = soak(Soak(store, runs=28, seconds=6, every=1, restart_every=1.5), tmp_path)
    assert verdict.counts["killed"]
    assert verdict.begun >= 28
    assert not verdict.wrong
    assert not verdict.broken
