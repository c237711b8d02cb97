"""The content of an entry's object, and the order of a run's entries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from durable_core.errors import CorruptLog
from durable_core.record import Status, StepRecord

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)
"""All errors that decoding raises. Some of them are not msgspec's."""


class Place(msgspec.Struct, gc=False):
    """The place of an entry in its run."""

    order: int
    revision: int


class Head(Place, gc=False):
    """The run, step and status of an entry. Decoding it checks that the whole body is JSON."""

    run_id: str
    step_id: str
    status: Status


class Entry(msgspec.Struct, gc=False):
    """One entry as it is stored. The body is empty until it is read."""

    key: str
    etag: str
    body: bytes = b""
    place: Place | None = None
    """Its place, if the body came from a snapshot or has been checked."""


place_of: Final = msgspec.json.Decoder(Place).decode
"""Decodes the place of an entry that was checked before. Raises one of `UNREADABLE`."""
_head: Final = msgspec.json.Decoder(Head).decode


def encode(record: StepRecord, order: int) -> bytes:
    """Return the record's JSON with its place in the run as first member. Decoding a record ignores that member."""
    return b'{"order":%d,%b' % (order, record.to_json()[1:])


def head(body: bytes, key: str) -> Head:
    """Decode the head of an entry. Raises `CorruptLog` if `body` isn't an entry."""
    try:
        return _head(body)
    except UNREADABLE as error:
        if not body.strip():
            raise CorruptLog(
                f"the object {key!r} is empty, but should contain a step record; restore it, or clear the run"
            ) from error
        raise CorruptLog(f"the object {key!r} does not contain a step record ({error}): {body[:200]!r}") from error


def _microseconds() -> int:
    return time.time_ns() // 1000


class OrderClock:
    """Gives each append of a run its place: above the highest place seen, and never below this machine's clock.

    So an entry comes after all entries that its writer knew, whatever the clocks say. The clocks order the rest.
    """

    def __init__(self, now: Callable[[], int] = _microseconds) -> None:
        self.now = now
        self._highest: Final[dict[str, int]] = {}

    def next(self, run_id: str) -> int:
        order = max(self._highest.get(run_id, 0) + 1, self.now())
        self.saw(run_id, order)
        return order

    def saw(self, run_id: str, order: int) -> None:
        highest = self._highest
        if order > highest.get(run_id, 0):
            if len(highest) >= 10_000 and run_id not in highest:
                self._forget()
            highest[run_id] = order

    def _forget(self) -> None:
        # Places below the present time no longer count.
        now = self.now()
        for run_id in [run_id for run_id, order in self._highest.items() if order < now]:
            del self._highest[run_id]


def in_order(entries: Iterable[Entry], places: Iterable[Place]) -> list[Entry]:
    """Return the entries in order of append, the same for every reader.

    Revisions of a step come in their own order, even if a writer with a slow clock did not know the run. Entries with equal
    places, from writers that did not know each other, are ordered by revision and key.
    """
    # Must be quick for 100,000 entries. Most steps have one entry, and need no comparison with others.
    keyed: list[tuple[int, int, str, Entry]] = []
    chains: dict[str, list[int]] = {}
    for index, (place, entry) in enumerate(zip(places, entries, strict=True)):
        keyed.append((place.order, place.revision, entry.key, entry))
        if place.revision:
            chains.setdefault(_folder(entry.key), []).append(index)
    if chains:
        for index, (_, revision, key, _) in enumerate(keyed):
            if not revision and (chain := chains.get(_folder(key))) is not None:
                chain.append(index)
    for chain in chains.values():
        floor = 0
        for index in sorted(chain, key=lambda index: keyed[index][1]):
            order, revision, key, entry = keyed[index]
            floor = max(floor, order)
            keyed[index] = (floor, revision, key, entry)
    keyed.sort()
    return [item[3] for item in keyed]


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
