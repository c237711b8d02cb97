"""Killing the process of a flow at every point, and comparing what becomes of the run."""

from __future__ import annotations

from .everywhere import crash_everywhere as crash_everywhere
from .report import CrashPoint as CrashPoint
from .report import CrashReport as CrashReport
from .report import NotCrashSafe as NotCrashSafe
