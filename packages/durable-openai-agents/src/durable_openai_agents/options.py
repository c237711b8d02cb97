"""What may be said of an agent's tools: how their steps run, and who decides their calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from durable_core import StepOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """Who decides the calls of a tool, how many of them have to agree, and until when.

    The fields mean what they mean to `Runner.approval`: `quorum` different people who approve, `approvers` the names of those
    who may decide, anyone if None; after `timeout` seconds nobody has decided, which fails the run, or, with
    `on_timeout="reject"`, is a rejection that the model is told.
    """

    quorum: int = 1
    approvers: Collection[str] | None = None
    timeout: float | timedelta | None = None
    on_timeout: Literal["fail", "reject"] = "fail"


class ToolOptions(StepOptions, total=False):
    """What one tool may set: the options of its steps, and who decides its calls."""

    approval: Approvals
    """Who decides. A tool that doesn't say itself when it needs approval then needs it for every call."""
