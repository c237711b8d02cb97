"""The Lua scripts that run inside the server.

A run's log is one hash, so that it can only expire, be evicted or be cleared as a whole. Its fields:

    1, 2, 3, …         the records, in order of append
    n                  the number of records
    g                  when the log began, by the server's clock. A log written after a `clear` has another value.
    s<revision>:<step> the number of the record that holds the slot
    l:<step>           the step's highest revision, unless that is 0
    w:<step>           present while the step's newest entry is `waiting`
    waiting            the number of steps that wait
    ttl                milliseconds that the run is kept after its last append, if a writer asked for that
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from itertools import chain
from typing import Any, Final

FOREIGN: Final = "NOTALOG"
HOLE: Final = "HOLE"


class Script:
    """A Lua script. We call it by its hash, and send `source` only to a server that doesn't have it yet.

    It works on any number of items, each with `keys` keys and some arguments, and answers with a list.
    """

    def __init__(self, source: str, *, keys: int = 1) -> None:
        self.keys: Final = keys
        self.source: Final = source
        self.hash: Final = sha1(source.encode(), usedforsecurity=False).hexdigest()


# Two arguments for each key: the record, and the values of it that the script needs, joined by a character that no id contains.
# Answers nothing if all records won their slots. Else answers for each record with the holder, an error, or false if it won.
# With `touch`, a lost claim writes the holder again, so that a WAIT on this connection covers it. With `told`, watches of the run
# are notified; pcall, because a user without rights to the channel may still append.
APPEND: Final = Script(r"""
local lost = false
local function claim(log, line, head)
  local revision, waiting, told, touch, ttl, step = string.match(head, '^(.-)\31(.-)\31(.-)\31(.-)\31(.-)\31(.*)$')
  local slot, latest, waits = 's' .. revision .. ':' .. step, 'l:' .. step, 'w:' .. step
  local at = redis.call('HMGET', log, 'n', slot, latest, waits, 'waiting', 'ttl')
  if at[2] then
    local held = redis.call('HGET', log, at[2])
    if not held then error({err = 'HOLE ' .. at[2]}) end
    if touch == '1' then redis.call('HSET', log, at[2], held) end
    lost = true
    return held
  end
  local n = (tonumber(at[1]) or 0) + 1
  if n == 1 then
    if redis.call('EXISTS', log) == 1 then error({err = 'NOTALOG'}) end
    local now = redis.call('TIME')
    redis.call('HSET', log, 'n', n, n, line, slot, n, 'g', now[1] .. '.' .. now[2])
  else
    redis.call('HSET', log, 'n', n, n, line, slot, n)
  end
  revision = tonumber(revision)
  local newest, waiters = tonumber(at[3]) or 0, tonumber(at[5]) or 0
  if revision > newest then redis.call('HSET', log, latest, revision) end
  if revision >= newest then
    if waiting == '1' and not at[4] then
      redis.call('HSET', log, waits, 1)
      waiters = redis.call('HINCRBY', log, 'waiting', 1)
    elseif waiting == '0' and at[4] then
      redis.call('HDEL', log, waits)
      waiters = redis.call('HINCRBY', log, 'waiting', -1)
    end
  end
  if ttl == '' then ttl = at[6] end
  if ttl then
    if ttl ~= at[6] then redis.call('HSET', log, 'ttl', ttl) end
    if waiters > 0 then redis.call('PERSIST', log) else redis.call('PEXPIRE', log, ttl) end
  end
  if told == '1' then redis.pcall('PUBLISH', log, '') end
  return false
end
local answers = {}
for i = 1, #KEYS do
  local done, answer = pcall(claim, KEYS[i], ARGV[2 * i - 1], ARGV[2 * i])
  if not done then
    lost = true
    if type(answer) ~= 'table' then answer = redis.error_reply(answer) end
    if string.find(answer.err, '^READONLY') then return answer end
  end
  answers[i] = answer
end
return lost and answers
""")

# A full server runs these scripts too: a touch takes no room, and a clear frees some. Don't flag them no-writes: a replica would
# run them, and may lack what the primary has already returned.
ALLOWED_WHEN_FULL: Final = "#!lua flags=allow-oom"

# Three arguments for each key: a step, its revision that the caller knows, and whether to touch the entry. Answers for each with
# the step's newest entry, if that has a higher revision.
NEWER: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local found = {}
for i, log in ipairs(KEYS) do
  local step, known, touch = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i]
  local latest = redis.call('HGET', log, 'l:' .. step)
  local newest = tonumber(latest or '0')
  found[i] = newest == nil and redis.error_reply('HOLE l:' .. step)
  if newest and newest > known then
    local n = redis.call('HGET', log, 's' .. newest .. ':' .. step)
    local line = n and redis.call('HGET', log, n)
    if line then
      if touch == '1' then redis.call('HSET', log, n, line) end
      found[i] = line
    elseif n or latest then
      found[i] = redis.error_reply('HOLE ' .. (n or 's' .. newest .. ':' .. step))
    end
  end
end
return found
"""
)

HELD: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local held = {}
for i, lock in ipairs(KEYS) do
  local value = redis.pcall('GET', lock)
  held[i] = type(value) == 'string' and value
end
return held
"""
)

# For one item. Answers with one string for a page, because the client takes ten times as long to read many small ones.
READ: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local log = KEYS[1]
local from, limit, known, touch = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local at = redis.call('HMGET', log, 'n', 'g')
if not at[1] then
  if redis.call('EXISTS', log) == 1 then return redis.error_reply('NOTALOG') end
  return {{'', 0, ''}}
end
if known ~= '' and known ~= at[2] then return {{at[2], 0, ''}} end
local n, size, lines = tonumber(at[1]), 0, {}
if not n then return redis.error_reply('HOLE n') end
for i = from, n do
  local line = redis.call('HGET', log, i)
  if not line then return redis.error_reply('HOLE ' .. i) end
  lines[#lines + 1] = line
  size = size + #line
  if size >= limit or #lines == 1000 then break end
end
if touch == '1' then redis.call('HSET', log, 'g', at[2]) end
return {{at[2], n, table.concat(lines, '\n')}}
"""
)

# For one item. With `touch` it writes even if there is nothing to clear, so that a WAIT also covers an earlier clear that lacked
# copies.
CLEAR: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
if not redis.call('HGET', KEYS[1], 'n') and redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.error_reply('NOTALOG')
end
if ARGV[1] == '1' then redis.call('HSET', KEYS[1], 'n', 0) end
return {redis.call('UNLINK', KEYS[1])}
"""
)


def _of_leases(body: str) -> Script:
    """Make a script for any number of leases. Each has two keys, its lock and its log, and three arguments."""
    return Script(
        rf"""
local function keep_log(log)
  local at = redis.pcall('HMGET', log, 'ttl', 'waiting')
  if at[1] and (tonumber(at[2]) or 0) == 0 then redis.call('PEXPIRE', log, at[1]) end
end
local function one(lock, log, value, ms, dead)
  local held = redis.call('GET', lock)
{body}
end
local answers = {{}}
for i = 1, #KEYS / 2 do
  local done, answer = pcall(one, KEYS[2 * i - 1], KEYS[2 * i], ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i])
  if not done then
    if type(answer) ~= 'table' then answer = redis.error_reply(answer) end
    if string.find(answer.err, '^READONLY') then return answer end
  end
  answers[i] = answer
end
return answers
""",
        keys=2,
    )


# If an answer is lost and the call sent again, the caller finds the lock held by itself. `dead` is the claim of a dead process,
# and may be replaced. A step may take longer than the run's ttl, so a held lock keeps the log.
ACQUIRE: Final = _of_leases(
    """
  if held and held ~= value and (dead == '' or held ~= dead) then return held end
  redis.call('SET', lock, value, 'PX', ms)
  keep_log(log)
  return false
"""
)

RENEW: Final = _of_leases(
    """
  if held ~= value then return 0 end
  redis.call('PEXPIRE', lock, ms)
  keep_log(log)
  return 1
"""
)

RELEASE: Final = _of_leases(
    """
  if held == value then redis.call('DEL', lock) end
  return 1
"""
)


@dataclass(slots=True, eq=False)
class Call:
    """A call of a script on the keys of one run, or of many runs on a single server."""

    script: Script
    keys: Sequence[str]
    args: Sequence[object]

    def command(self, *, known: bool = True) -> tuple[object, ...]:
        name, script = ("EVALSHA", self.script.hash) if known else ("EVAL", self.script.source)
        return (name, script, len(self.keys), *self.keys, *self.args)


Item = tuple[Any, ...]
"""One item of a call: its keys, with the run's log or lock first, then its arguments."""


def call_for(script: Script, items: Sequence[Item]) -> Call:
    """Make one call for all items."""
    keys = chain.from_iterable(item[: script.keys] for item in items)
    return Call(script, [*keys], [*chain.from_iterable(item[script.keys :] for item in items)])
