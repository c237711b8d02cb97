"""Cron expressions and their times in a time zone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_SHORT: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_EXAMPLE: Final = "write five, minute, hour, day of the month, month, day of the week, such as '0 9 * * 1-5'"
_SOME_DAY: Final = datetime(2024, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)


class Cron:
    """The ticks of a cron expression in a time zone, as Debian's cron has them.

    When clocks change, a fixed time is one tick: the first of two in autumn, and the next minute that exists in spring. An
    expression with a star at the beginning of its minute or hour ticks at each fitting local time, in both of two equal hours.

    Raises `ValueError` for an invalid expression, for a time that never comes, and for an unknown time zone.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        self.expression: Final = _plain(expression)
        """The expression in normal form, for comparing it with another."""
        self.zone: Final = _zone(timezone)
        self.timezone: Final = timezone
        try:
            comes = self.after(_SOME_DAY) is not None
        except (CronSimError, ValueError) as error:  # the latter for a number of thousands of digits
            raise ValueError(f"expression {_short(expression)} is not a cron expression: {error}; {_EXAMPLE}") from error
        if not comes:
            raise ValueError(f"expression {_short(expression)} describes a time that never comes; {_EXAMPLE}")

    def ticks(self, moment: datetime) -> Iterator[datetime]:
        """Yield the ticks after `moment`, in UTC. They end if the next one is more than 50 years away."""
        for tick in CronSim(self.expression, moment.astimezone(self.zone)):
            # If `moment` is in the second of two equal hours, cronsim may return a fixed time of the first.
            if (at := tick.astimezone(UTC)) > moment:
                yield at

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick after `moment`."""
        return next(self.ticks(moment), None)

    def newest(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last tick after `after` and not after `until`, without going through all of them."""
        newest = self.after(after)
        if newest is None or newest > until:
            return None
        last = until  # no tick other than `newest` is between `last` and `until`
        while last - newest >= _MINUTE:
            middle = newest + (last - newest) / 2
            tick = self.after(middle)
            if tick is None or tick > until:
                last = middle
            else:
                newest = tick
        return newest


def _plain(expression: object) -> str:
    """Return the five fields, in upper case, separated by one space."""
    if not isinstance(expression, str):
        raise TypeError(f"expression must be a str such as '0 9 * * 1-5', not {expression!r}")
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in _SHORT:
            raise ValueError(f"expression {_short(expression)} is unknown; known: {', '.join(_SHORT)}; or {_EXAMPLE}")
        return _SHORT[text.lower()]
    fields = text.upper().split()
    if len(fields) != 5:
        raise ValueError(f"expression {_short(expression)} has {len(fields)} field{'s' * (len(fields) != 1)}; {_EXAMPLE}")
    return " ".join(fields)


def _zone(timezone: object) -> ZoneInfo:
    if not isinstance(timezone, str):
        raise TypeError(f"timezone must be a time zone's name, such as 'Europe/Berlin', not {timezone!r}")
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:  # an unknown zone, an invalid name, or a folder of zones
        raise ValueError(
            f"timezone {_short(timezone)} is unknown here; write a name such as 'Europe/Berlin' or 'UTC'. If the system has"
            " no time zones, as on Windows, install the package tzdata"
        ) from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}…")
