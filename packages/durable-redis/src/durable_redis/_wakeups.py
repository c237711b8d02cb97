"""Wake-ups: one sorted set for each flow, ordered by when each wake-up shows next.

Times are microseconds since 1970, by the server's clock. A member is a wake-up: token, time and run, with U+001F between them.
Wake-ups don't expire. If the run of one has expired, a worker looks for it in vain.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from durable_core.store import WakeUp
from durable_core.stores.wakeups import check_time

from ._keys import Keys
from ._scripts import ALLOWED_WHEN_FULL, Script
from ._server import Server

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LOOKS: Final = 5
_log: Final = logging.getLogger("durable_redis")


def _over_keys(body: str, *, head: str = ALLOWED_WHEN_FULL) -> Script:
    """Make a script that calls `one(key, first, second)` for each key with its two arguments, and answers with the results."""
    return Script(
        f"""{head}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function one(key, first, second)
{body}
end
local answers = {{}}
for i, key in ipairs(KEYS) do
  local done, answer = pcall(one, key, ARGV[2 * i - 1], ARGV[2 * i])
  if not done and type(answer) ~= 'table' then answer = redis.error_reply(answer) end
  answers[i] = answer
end
return answers
"""
    )


# A member, and when it shows. After a lost answer the member exists already: it is written again, for WAIT to cover it.
_SET: Final = _over_keys(
    """
  redis.call('ZREM', key, first)
  redis.call('ZADD', key, second, first)
  return now
""",
    head="#!lua",
)

# How many to return. Answers with members that are due, each followed by the time at which it became due.
_DUE: Final = _over_keys("  return redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, first, 'WITHSCORES')")

# A member, and for how long to hide it if it is due. Answers with the time, or nothing if another caller has taken it.
_HIDE: Final = _over_keys(
    """
  local shows = redis.call('ZSCORE', key, first)
  if not shows or tonumber(shows) > now then return false end
  redis.call('ZADD', key, now + second, first)
  return now
"""
)

_REMOVE: Final = _over_keys("  return redis.call('ZREM', key, first)")


class Wakeups:
    """The wake-ups of one store."""

    def __init__(self, serving: Callable[[], Server], keys: Keys) -> None:
        self._serving: Final = serving
        self._keys: Final = keys

    async def set(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        check_time(at)
        shows = _microseconds(at)
        member = _member(os.urandom(8).hex(), shows, run_id)
        now = await self._serving().submit(_SET, (self._keys.wakeups(flow), member, shows))
        return _wakeup(flow, member.encode(), now)

    async def take(self, flows: Collection[str], limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        named = {self._keys.wakeups(flow): flow for flow in flows}
        hidden_for = visibility_timeout // _MICROSECOND
        taken: list[WakeUp] = []
        for _ in range(_LOOKS):
            # Don't wait for copies: if a failover forgets that a wake-up was hidden, it just shows again.
            found = await self._serving().ask(_DUE, [(key, limit, "") for key in named], confirm=False)
            due = [
                (float(shows), key, member)
                for key, members in zip(named, found, strict=True)
                for member, shows in zip(members[::2], members[1::2], strict=True)
            ]
            items = [(key, member, hidden_for) for _, key, member in sorted(due)[:limit]]
            times = await self._serving().ask(_HIDE, items, confirm=False)
            for (key, member, _), now in zip(items, times, strict=True):
                if now is not None:
                    try:
                        taken.append(_wakeup(named[key], member, now))
                    except (ValueError, OverflowError):
                        _log.warning("%s holds %r, which is not a wake-up: remove it", key, member)
            if taken or not due:
                break  # else others took all of these, and more may be due
        return taken

    async def clear(self, wakeups: Sequence[WakeUp]) -> None:
        members = [(each.flow, _member(each.token, _microseconds(each.at), each.run_id)) for each in wakeups]
        items = [(self._keys.wakeups(flow), member, "") for flow, member in members]
        await self._serving().ask(_REMOVE, items, confirm=False)


def _member(token: str, at: int, run_id: str) -> str:
    return f"{token}\x1f{at}\x1f{run_id}"


def _wakeup(flow: str, member: bytes, now: int) -> WakeUp:
    token, at, run_id = member.decode().split("\x1f", 2)
    return WakeUp(run_id=run_id, flow=flow, at=_moment(int(at)), token=token, now=_moment(now))


def _moment(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


def _microseconds(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND
