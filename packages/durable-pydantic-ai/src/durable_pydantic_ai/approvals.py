"""Who decides on the calls of a tool."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True)
class Approvals:
    """Who decides on a tool's calls: for all tools in `Durability(approvals=…)`, for one in its metadata.

    `quorum` different people have to approve the same arguments, of `approvers` if given; one rejection decides. A call that
    nobody decided within `timeout` seconds is rejected, and the model is told so; with `on_timeout="fail"` the run fails instead.
    """

    _: KW_ONLY
    quorum: int = 1
    approvers: tuple[str, ...] | None = None
    timeout: float | timedelta | None = None
    on_timeout: Literal["fail", "reject"] = "reject"

    def __post_init__(self) -> None:
        if isinstance(self.approvers, str):
            raise TypeError(f"approvers must be several names, not one text; write ({self.approvers!r},)")
        if isinstance(self.quorum, bool) or not isinstance(self.quorum, int):
            raise TypeError(f"quorum must be a whole number of people from 1, not {self.quorum!r}")
        most = None if self.approvers is None else len(set(self.approvers))
        if self.quorum < 1 or (most is not None and self.quorum > most):
            limit = "" if most is None else f" to {most}, the number of approvers"
            raise ValueError(f"quorum must be from 1{limit}, not {self.quorum!r}")
        if self.on_timeout not in ("fail", "reject"):
            raise ValueError(f"on_timeout must be 'fail' or 'reject', not {self.on_timeout!r}")
