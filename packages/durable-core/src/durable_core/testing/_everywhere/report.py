"""What `crash_everywhere` found, point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


class CrashPoint(msgspec.Struct, frozen=True):
    """One run of the flow, whose process was killed at one place, and what became of it."""

    place: str
    """Where: `before append of 'charge' (success)`, `as 'charge' begins`, `after the lock is taken, in visit 2`."""
    run_id: str
    killed: bool
    """Whether its process was killed: not in the first two runs, nor in one that never came to that place, as in a race."""
    outcome: str
    """How the run stood in the end: `succeeded`, `failed`, `parked`, …; `lost` where it did not come to an end."""
    began: Mapping[str, int]
    """How often the function of each step began."""
    again: Sequence[str]
    """The steps whose functions began more often than in an undisturbed run."""
    difference: str | None
    """The first thing in which the run differs from an undisturbed one; None if nothing does."""


class CrashReport(msgspec.Struct, frozen=True):
    """What became of a flow whose process was killed at every point. `str` makes a table of it, with a row for each point."""

    flow: str
    points: Sequence[CrashPoint]
    seconds: float

    @property
    def different(self) -> Sequence[CrashPoint]:
        """The points at which the run differs from an undisturbed one."""
        return [point for point in self.points if point.difference is not None]

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return sum(point.killed for point in self.points)

    def __str__(self) -> str:
        return "\n".join([self.summary, "", *self.table(self.points)])

    @property
    def summary(self) -> str:
        """The numbers, in one line."""
        runs, different = f"{len(self.points)} runs", len(self.different)
        found = f"{different} differ" if different else "all came out as undisturbed"
        return f"flow {self.flow!r}: {runs}, {self.kills} of them killed, {found}, in {self.seconds:.1f} s"

    @staticmethod
    def table(points: Sequence[CrashPoint]) -> Sequence[str]:
        """Return rows for some of the points, below a row of headings."""
        rows = [("killed at", "ended", "began again", "as undisturbed")]
        for each in points:
            difference = "yes" if each.difference is None else f"no: {each.difference.splitlines()[-1]}"
            rows.append((each.place, each.outcome, ", ".join(each.again), difference))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return ["  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows]


class NotCrashSafe(AssertionError):
    """A run whose process was killed came out otherwise than an undisturbed one. `report` tells of all points."""

    def __init__(self, report: CrashReport) -> None:
        first = report.different[0]
        rows = report.table(report.different[:20])
        super().__init__(f"{first.place} (run {first.run_id!r}): {first.difference}\n\n{report.summary}\n" + "\n".join(rows))
        self.report = report

    def __reduce__(self) -> tuple[type[NotCrashSafe], tuple[CrashReport]]:
        return type(self), (self.report,)
