"""Wake-ups: objects with keys that say when to look at which run. They sort by time, so a listing stops at the first not due.

    wakeups/<flow>/<at>.<random>.<run>

An object is empty unless the run's id was cut in the key: then it contains the id. S3 can't hide wake-ups: every worker lists all
that are due, and the run's lock decides. A store only remembers those that it has returned, and leaves them out for a while.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from time import monotonic
from typing import Final, NamedTuple

import msgspec

from durable_core.store import WakeUp
from durable_core.stores.flows import sortable
from durable_core.stores.wakeups import check_time

from ._bucket import PAGE, Bucket
from ._entry import UNREADABLE
from ._keys import Keys, is_cut, segment, wakeup_name
from ._reader import together

_NAME: Final = re.compile(r"(\d{18})\.[0-9a-f]{8}\.(.+)")
_log: Final = logging.getLogger("durable_s3")


class _Due(NamedTuple):
    at: str
    token: str
    flow: str
    run: str
    """The run's part of the key."""
    key: str
    now: datetime


class Wakeups:
    """The wake-ups of a store. A token is the object's name."""

    def __init__(self, bucket: Bucket, keys: Keys) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._taken: Final[dict[str, float]] = {}
        """The keys of returned wake-ups, and until when not to return them again, in monotonic seconds."""

    async def set(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        check_time(at)
        token = wakeup_name(run_id, at)
        body = msgspec.json.encode(run_id) if is_cut(segment(run_id)) else b""
        date = await self._bucket.put(self._keys.wakeup(flow, token), body)
        return WakeUp(run_id=run_id, flow=flow, at=at, token=token, now=_clock(date))

    async def take(self, flows: Collection[str], limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        if limit <= 0:
            return []
        for key in [key for key, until in self._taken.items() if until <= monotonic()]:
            del self._taken[key]
        found = chain.from_iterable(await together(self._due(flow, limit) for flow in {*flows}))
        # Another task may have taken some meanwhile.
        due = sorted(each for each in found if each.key not in self._taken)[:limit]
        until = monotonic() + visibility_timeout.total_seconds()
        self._taken.update((each.key, until) for each in due)
        return [wakeup for wakeup in await together(map(self._read, due)) if wakeup is not None]

    async def clear(self, wakeups: Sequence[WakeUp]) -> None:
        keys = [self._keys.wakeup(wakeup.flow, wakeup.token) for wakeup in wakeups]
        await self._bucket.delete(keys)
        for key in keys:
            self._taken.pop(key, None)

    async def _due(self, flow: str, limit: int) -> Sequence[_Due]:
        """Return about `limit` wake-ups of a flow that are due and not taken, the earliest first."""
        folder = self._keys.wakeups(flow)
        found: list[_Due] = []
        most = limit + sum(key.startswith(folder) for key in self._taken)
        async for page in self._bucket.pages(folder, most=min(most, PAGE)):
            now = _clock(page.date)
            for key in (at.key for at in page.objects if at.key not in self._taken):
                token = key.removeprefix(folder)
                if (name := _NAME.fullmatch(token)) is None:
                    continue  # another program's object
                if name[1] > sortable(now):
                    return found
                found.append(_Due(at=name[1], token=token, flow=flow, run=name[2], key=key, now=now))
            if len(found) >= limit:
                break
        return found

    async def _read(self, due: _Due) -> WakeUp | None:
        """Return the wake-up, or None if it was cleared meanwhile or doesn't contain a run."""
        try:
            run_id = self._keys.run_id(self._keys.folder(due.run))
            if run_id is None:
                content = await self._bucket.read(due.key)
                if content is None:
                    return None
                run_id = msgspec.json.decode(content.body, type=str)
                if segment(run_id) != due.run:
                    raise ValueError(f"it holds the id {run_id!r}, which belongs at {segment(run_id)!r}")
        except (ValueError, *UNREADABLE) as error:
            _log.warning("%r in bucket %s is not a wake-up of a run, and is passed over: %s", due.key, self._bucket.name, error)
            return None
        at = datetime.min.replace(tzinfo=UTC) + timedelta(microseconds=int(due.at))
        return WakeUp(run_id=run_id, flow=due.flow, at=at, token=due.token, now=due.now)


def _clock(date: datetime | None) -> datetime:
    """Return the server's time from an answer, or this machine's if the answer has none."""
    return datetime.now(UTC) if date is None else date
