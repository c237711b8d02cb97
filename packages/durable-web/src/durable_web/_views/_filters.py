"""Reads filters from the query of a page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.exceptions import HTTPException

from durable_web._visit import Visit

_LABELS: Final = {"since": "Begun within", "longer": "Waiting longer than"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST: Final = timedelta(days=36_500)  # the result of subtracting it is still a date


def span_of(visit: Visit, name: str) -> timedelta | None:
    """Return a length of time from the query, such as `30d`, `12h`, `5m`. Raises `HTTPException` for anything else."""
    text = visit.asked(name).strip()
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,6})([smhdw]?)", text, re.ASCII)
    if found is None:
        raise HTTPException(400, f"{_LABELS[name]} must be a length of time, such as 30d, 12h, 5m or 10s, not {text!r}")
    return min(timedelta(seconds=int(found[1]) * _UNITS[found[2] or "s"]), _LONGEST)


def before_of(visit: Visit) -> tuple[datetime, str] | None:
    """Return where the previous page ended: a time and a run's id. Raises `HTTPException` for anything else."""
    at, _, run_id = visit.asked("before").partition(" ")
    if not at:
        return None
    try:
        return datetime.fromisoformat(at).astimezone(UTC), run_id
    except (ValueError, OverflowError):
        raise HTTPException(400, f"before must be the time and the id of a run, not {visit.asked('before')!r}") from None


def number_of(visit: Visit, name: str, most: int) -> int | None:
    """Return a number from 1 to `most` from the query. None if it is missing. Raises `HTTPException` for anything else."""
    text = visit.asked(name)
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not int(text):
        raise HTTPException(400, f"{name} must be a whole number, at least 1, not {text!r}")
    return min(int(text), most)
