"""What may be said of an agent's tools: how their steps run, and who decides their calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Literal

from durable_core import StepOptions


@dataclass(frozen=True)
class Approvals:
    """Who decides on a tool's calls.

    `quorum` different people have to approve, of `approvers` if given; one rejection decides. A call that nobody decided within
    `timeout` seconds is rejected, and the model is told so; with `on_timeout="fail"` the run fails instead.
    """

    _: KW_ONLY
    quorum: int = 1
    approvers: Collection[str] | None = None
    timeout: float | timedelta | None = None
    on_timeout: Literal["fail", "reject"] = "reject"

    def __post_init__(self) -> None:
        if isinstance(self.approvers, str):
            raise TypeError(f"approvers must be several names, not one text; write [{self.approvers!r}]")
        if isinstance(self.quorum, bool) or not isinstance(self.quorum, int):
            raise TypeError(f"quorum must be a whole number of people from 1, not {self.quorum!r}")
        most = None if self.approvers is None else len(set(self.approvers))
        if self.quorum < 1 or (most is not None and self.quorum > most):
            limit = "" if most is None else f" to {most}, the number of approvers"
            raise ValueError(f"quorum must be from 1{limit}, not {self.quorum!r}")
        if self.on_timeout not in ("fail", "reject"):
            raise ValueError(f"on_timeout must be 'fail' or 'reject', not {self.on_timeout!r}")


class ToolOptions(StepOptions, total=False):
    """What one tool may set: the options of its steps, and who decides on its calls."""

    approvals: Approvals
    """Who decides. A tool that doesn't say itself which calls need approval then needs it for all."""


def check_tools(tools: Mapping[str, ToolOptions | Literal[False]]) -> None:
    """Raise `TypeError` for what says nothing of a tool."""
    for name, options in tools.items():
        if options is not False and not isinstance(options, Mapping):
            raise TypeError(f"tools[{name!r}] must be a dict of options, or False for a tool that is no step, not {options!r}")
        if options and not isinstance(who := options.get("approvals", Approvals()), Approvals):
            raise TypeError(f"tools[{name!r}]['approvals'] must be Approvals, such as Approvals(quorum=2), not {who!r}")
