"""Telling of new approvals: a hook that is called at least once for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from durable_core.record import StepRecord

Notify = Callable[[StepRecord], object] | Callable[[StepRecord], Awaitable[object]]
"""Called with the newest entry of an approval that waits."""
