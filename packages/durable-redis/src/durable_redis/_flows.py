"""The index of flows, which finds runs by state, name and start: one sorted set, checked against the logs when it is read.

In a cluster, a run's log and the index are in different slots, so no call can write both. An append of a flow adds an entry to
the index, appends to the log, then writes the entry again and removes older ones. A process that dies in between leaves an entry
too many. An entry is three members of the set, which sorts them by their bytes. `name` is a hash:

    <state> <began><run> <revision> <added> <token> <name>            lists the flows of a state in order
    #<name> <state> <began><run> <revision> <added> <token> <name>    lists the flows of a name and state in order
    $<run> <state> <began> <revision> <added> <token> <name>          lists the entries of a run, or of runs with a prefix
    !filled                                                           says that runs older than the index are in it
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple, Self

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, is_among, sortable, state_of

from ._keys import Keys
from ._scripts import ALLOWED_WHEN_FULL, NEWER, Script
from ._server import Server

_DIGITS: Final = 18
_IN_FLIGHT: Final = 3600
"""For so many seconds, an entry without a record may belong to an append that is under way."""
_RUNS: Final = 500
_FEW: Final = 1_000
"""If a prefix has no more entries than this, we fetch and sort them all."""
_log: Final = logging.getLogger("durable_redis")

_MEMBERS: Final = r"""
local function members(entry)
  local run, state, began, rest, name = string.match(entry, '^%$(.-)\31(.-)\31(.-)\31(.*\31(.-))$')
  local place = state .. '\31' .. began .. run .. '\31' .. rest
  return entry, place, '#' .. name .. '\31' .. place
end
local now = redis.call('TIME')[1]
"""

# Five arguments for each key; all but the first may be empty. A run; up to which revision to remove its entries; the token of
# entries to remove; and the parts before and after the time of an entry to add.
_WRITE: Final = Script(
    _MEMBERS
    + r"""
local done = {}
for i, index in ipairs(KEYS) do
  local run, below, token, head, tail = unpack(ARGV, 5 * i - 4, 5 * i)
  local first, last, own = '[$' .. run .. '\31', '($' .. run .. '\32', {}
  if below ~= '' or token ~= '' then own = redis.call('ZRANGE', index, first, last, 'BYLEX') end
  for _, entry in ipairs(own) do
    local revision, its = string.match(entry, '^.-\31.-\31.-\31(.-)\31.-\31(.-)\31')
    if its == token or (below ~= '' and tonumber(revision) <= tonumber(below)) then
      redis.call('ZREM', index, members(entry))
    end
  end
  if head ~= '' then
    local entry, place, named = members(head .. now .. tail)
    redis.call('ZADD', index, 0, entry, 0, place, 0, named)
  end
  done[i] = 1
end
return done
"""
)

# Three arguments for each key: where a range begins and ends, and how many members to return. Answers with the members.
_RANGE: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local found = {}
for i, index in ipairs(KEYS) do
  found[i] = redis.call('ZRANGE', index, ARGV[3 * i - 2], ARGV[3 * i - 1], 'BYLEX', 'LIMIT', 0, ARGV[3 * i])
end
return found
"""
)

# Two arguments for each key: an entry to remove, and how many seconds old it must be.
_DROP: Final = Script(
    ALLOWED_WHEN_FULL
    + _MEMBERS
    + r"""
local done = {}
for i, index in ipairs(KEYS) do
  local entry, age = ARGV[2 * i - 1], ARGV[2 * i]
  local added = string.match(entry, '^.-\31.-\31.-\31.-\31(.-)\31')
  if now - added >= tonumber(age) then redis.call('ZREM', index, members(entry)) end
  done[i] = 1
end
return done
"""
)

# Five arguments for each key: the text that a group of members begins with, where its range begins and ends, a prefix of runs,
# and how many members to return. Answers with where it stopped, empty if at the end, and the members that it found.
_PAGE: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local function page(index, group, from, to, prefix, limit)
  local found, start, looked, step = {''}, #group + 20, 0, prefix == '' and limit or 500
  while looked < 4000 do
    local members = redis.call('ZRANGE', index, from, to, 'BYLEX', 'REV', 'LIMIT', 0, step)
    for _, member in ipairs(members) do
      if string.sub(member, start, start + #prefix - 1) == prefix then
        found[#found + 1] = member
        if #found > limit then return found end
      end
    end
    if #members < step then return found end
    looked, from = looked + step, '(' .. members[step]
  end
  found[1] = from
  return found
end
local pages = {}
for i, index in ipairs(KEYS) do
  local group, from, to, prefix, limit = unpack(ARGV, 5 * i - 4, 5 * i)
  pages[i] = page(index, group, from, to, prefix, tonumber(limit))
end
return pages
"""
)

# One argument for each key: whether to mark the index as filled. Answers whether it is marked.
_FILLED: Final = Script(
    ALLOWED_WHEN_FULL
    + r"""
local said = {}
for i, index in ipairs(KEYS) do
  if ARGV[i] == '1' then redis.call('ZADD', index, 0, '!filled') end
  said[i] = redis.call('ZSCORE', index, '!filled') and 1 or 0
end
return said
"""
)


class _Entry(NamedTuple):
    """One entry of the index."""

    began: str
    run_id: str
    state: str
    rest: str

    @classmethod
    def in_group(cls, group: str, member: bytes) -> Self:
        """Parse a member that begins with a group."""
        *_, state, place, rest = member.decode().split("\x1f", 2 + group.count("\x1f"))
        return cls(place[:_DIGITS], place[_DIGITS:], state, rest)

    @classmethod
    def of_run(cls, member: bytes) -> Self:
        """Parse a member that begins with a run."""
        run, state, began, rest = member.decode().split("\x1f", 3)
        return cls(began, run[1:], state, rest)

    @property
    def place(self) -> str:
        return self.began + self.run_id

    @property
    def revision(self) -> int:
        return int(self.rest.partition("\x1f")[0])

    @property
    def name(self) -> str:
        return self.rest.rpartition("\x1f")[2]

    def __str__(self) -> str:
        return f"${self.run_id}\x1f{self.state}\x1f{self.began}\x1f{self.rest}"


class _Asked(NamedTuple):
    """The entries to look for, in the terms of the index."""

    prefix: str
    names: frozenset[str] | None
    states: frozenset[str]
    first: str

    def takes(self, entry: _Entry) -> bool:
        return entry.state in self.states and (self.names is None or entry.name in self.names) and entry.began >= self.first

    @property
    def groups(self) -> list[str]:
        """The beginnings of the members to look through."""
        names = [""] if self.names is None else [f"#{name}\x1f" for name in self.names]
        return [f"{name}{state}" for name in names for state in self.states]


class FlowIndex:
    """The index of a store's flows."""

    def __init__(self, serving: Callable[[], Server], keys: Keys, touch: int) -> None:
        self._serving: Final = serving
        self._keys: Final = keys
        self._touch: Final = touch
        self._is_filled = False

    async def add(self, flow: StepRecord) -> str:
        """Write an entry before its record is appended; return its token."""
        token = os.urandom(8).hex()
        await self._write(flow.run_id, entry=_around_time(flow, token))
        return token

    async def settle(self, flow: StepRecord, token: str, *, won: bool) -> None:
        """Remove the run's older entries once the record has won its slot. If it lost, remove the entry with its token.

        Writes the winner's entry again with another token: a `clear` or a reader may have removed the first meanwhile.
        """
        if won:
            await self._write(flow.run_id, below=str(flow.revision), entry=_around_time(flow, f"{token}+"))
        else:
            await self._write(flow.run_id, token=token)

    async def of_run(self, run_id: str) -> Sequence[bytes]:
        """Return the entries of a run."""
        return await self._range(f"${run_id}\x1f".encode(), f"${run_id} ".encode(), -1)

    async def drop(self, entries: Sequence[bytes | str], *, age: int = 0) -> None:
        """Remove entries, except those younger than `age` seconds."""
        await self._serving().ask(_DROP, [(self._keys.flows, entry, age) for entry in entries])

    async def find(
        self,
        prefix: str,
        names: Collection[str] | None,
        states: Collection[FlowState] | None,
        since: datetime | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[StepRecord]:
        """Return the newest entries of flows, read from their logs, the latest start first.

        Passes over an entry that can't be read, and raises its error only if there is nothing else to return.
        """
        wanted: dict[str, Any] = {"names": names, "states": states, "since": since, "before": before}
        asked = _Asked(
            prefix,
            None if names is None else frozenset(map(_hash, names)),
            frozenset(FLOW_STATES if states is None else states),
            "" if since is None else sortable(since),
        )
        place = None if before is None else sortable(before[0]) + before[1]
        few = await self._few(prefix) if prefix else None
        found: dict[str, StepRecord] = {}
        refusal: StoreError | None = None
        late: list[str] = []
        lost: list[str] = []
        while (left := limit - len(found)) > 0:
            entries = await self._page(asked, place, left) if few is None else filter(asked.takes, few)
            behind = [entry for entry in entries if place is None or entry.place < place]
            page = sorted(behind, key=attrgetter("place"), reverse=True)[:left]
            if not page:
                break
            logs, refused = await self._logs({entry.run_id for entry in page})
            refusal = next(iter(refused.values()), refusal)
            for entry in page:
                if entry.run_id in refused:
                    continue
                flow = logs.get(entry.run_id)
                if flow is None or flow.revision < entry.revision:
                    lost.append(str(entry))
                    continue
                is_here = sortable(flow.started_at) == entry.began
                if is_here and is_among(flow, prefix, **wanted):
                    found[entry.run_id] = flow
                if not is_here or entry.revision < flow.revision or entry.state != state_of(flow):
                    late.append(str(entry))
            place = page[-1].place
        try:
            await self.drop(late)
            await self.drop(lost, age=_IN_FLIGHT)
        except StoreError as error:
            _log.info("entries of the index that stand for nothing were left: %s", error)
        if refusal is not None and not found:
            raise refusal
        return [*found.values()]

    async def fill(self, runs: Callable[[], AsyncIterator[str]]) -> None:
        """Write entries for runs that are older than the index. Done once per index."""
        if self._is_filled:
            return
        if await self._serving().ask(_FILLED, [(self._keys.flows, 0)]) == [0]:
            some: set[str] = set()
            async for run_id in runs():
                some.add(run_id)
                if len(some) == _RUNS:
                    await self._fill(some)
                    some.clear()
            await self._fill(some)
            await self._serving().ask(_FILLED, [(self._keys.flows, 1)])
        self._is_filled = True

    async def _fill(self, runs: Collection[str]) -> None:
        flows = (await self._logs(runs))[0].values()
        items = [
            (self._keys.flows, flow.run_id, str(flow.revision), "", *_around_time(flow, os.urandom(8).hex())) for flow in flows
        ]
        await self._serving().ask(_WRITE, items)

    async def _write(self, run_id: str, *, below: str = "", token: str = "", entry: tuple[str, str] = ("", "")) -> None:
        await self._serving().submit(_WRITE, (self._keys.flows, run_id, below, token, *entry))

    async def _range(self, first: bytes, end: bytes, limit: int) -> Sequence[bytes]:
        """Return up to `limit` members from `first` on and before `end`."""
        (members,) = await self._serving().ask(_RANGE, [(self._keys.flows, b"[" + first, b"(" + end, limit)])
        return list(members)

    async def _few(self, prefix: str) -> Sequence[_Entry] | None:
        """Return all entries of runs with a prefix, unsorted. None if there are many: then search by time instead."""
        start = f"${prefix}".encode(errors="replace")
        members = await self._range(start, start + b"\xff", _FEW + 1)  # UTF-8 never contains \xff
        return None if len(members) > _FEW else [*map(_Entry.of_run, members)]

    async def _page(self, asked: _Asked, place: str | None, limit: int) -> Sequence[_Entry]:
        """Return up to `limit` entries of each group, the latest start first."""
        left = {group: f"({group}" + (" " if place is None else f"\x1f{place}") for group in asked.groups}
        found: dict[str, list[_Entry]] = {group: [] for group in left}
        while left:
            items = [
                (self._keys.flows, group, start, f"[{group}\x1f{asked.first}", asked.prefix, limit - len(found[group]))
                for group, start in left.items()
            ]
            pages = await self._serving().ask(_PAGE, items, confirm=False)
            for group, (stop, *members) in zip([*left], pages, strict=True):
                found[group] += [_Entry.in_group(group, member) for member in members]
                left[group] = stop
            left = {group: stop for group, stop in left.items() if stop}
        return [*chain.from_iterable(found.values())]

    async def _logs(self, runs: Collection[str]) -> tuple[Mapping[str, StepRecord], Mapping[str, StoreError]]:
        """Return the newest entries of flows, and the errors of those that can't be read."""
        looks = [(self._keys.log(run_id), FLOW, -1, self._touch) for run_id in runs]
        found: dict[str, StepRecord] = {}
        refused: dict[str, StoreError] = {}
        for run_id, line in zip(runs, await self._serving().answers(NEWER, looks), strict=True):
            try:
                if isinstance(line, StoreError):
                    raise line
                if line is not None:
                    found[run_id] = StepRecord.from_json(line, where=f"step {FLOW!r} in {self._keys.log(run_id)}")
            except StoreError as error:
                _log.warning("a run is passed over: %s", error)
                refused[run_id] = error
        return found, refused


def _around_time(flow: StepRecord, token: str) -> tuple[str, str]:
    """Return the parts before and after the time in the entry of a record."""
    head = f"${flow.run_id}\x1f{state_of(flow)}\x1f{sortable(flow.started_at)}\x1f{flow.revision}\x1f"
    return head, f"\x1f{token}\x1f{_hash(flow.name)}"


def _hash(name: str) -> str:
    return blake2b(name.encode(errors="replace"), digest_size=8).hexdigest()
