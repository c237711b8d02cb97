"""Tools for testing stores, and programs that use them.

`StoreTests` needs pytest and pytest-asyncio; the rest works without them. No pytest plugin is registered, and `durable_core`
itself imports nothing from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._clock import FakeClock
from ._crashing import CrashingStore, InjectedFault
from ._everywhere import CrashPoint, CrashReport, NotCrashSafe, crash_everywhere
from ._replaying import Difference, ReplayedRun, ReplayReport, replay_check
from ._samples import HOSTILE_IDS, OpenStore

if TYPE_CHECKING:
    from ._contract import StoreTests

__all__ = [
    "HOSTILE_IDS",
    "CrashPoint",
    "CrashReport",
    "CrashingStore",
    "Difference",
    "FakeClock",
    "InjectedFault",
    "NotCrashSafe",
    "OpenStore",
    "ReplayReport",
    "ReplayedRun",
    "StoreTests",
    "crash_everywhere",
    "replay_check",
]


def __getattr__(name: str) -> Any:
    if name != "StoreTests":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(f"{__name__}._contract")
    from ._contract import StoreTests

    return StoreTests
