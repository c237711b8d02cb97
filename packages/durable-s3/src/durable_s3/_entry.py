"""What stands in an entry's object, and the order of a run's entries."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, overload

import msgspec

from durable_core.errors import CorruptLog, StoreError
from durable_core.record import StepRecord


class Head(msgspec.Struct, gc=False):
    """The part of an entry that places it; decoding it also checks that the whole body is JSON."""

    order: int
    run_id: str
    step_id: str
    revision: int


class Entry(msgspec.Struct, gc=False):
    """One entry as it is stored."""

    key: str
    etag: str
    body: bytes


_head: Final = msgspec.json.Decoder(Head).decode


def encode(record: StepRecord, order: int) -> bytes:
    """Return the record's own line with its place in the run as first member, which readers of records pass over."""
    return b'{"order":%d,%b' % (order, record.to_json()[1:])


def head(body: bytes, key: str) -> Head:
    """Raises `CorruptLog` where `body` is no entry."""
    try:
        return _head(body)
    except msgspec.DecodeError as error:
        raise CorruptLog(f"the object {key!r} holds no step record ({error}): {body[:200]!r}") from error


def decode(body: bytes, key: str) -> StepRecord:
    try:
        return StepRecord.from_json(body)
    except StoreError as error:
        raise CorruptLog(f"the object {key!r} can't be read: {error}") from error


class OrderClock:
    """Gives each append of a run its place: one above the highest that was seen, and never below this machine's clock.

    So an entry stands behind everything that its writer knew of, whatever the clocks say, and behind what it did not know of as
    far as the clocks agree.
    """

    def __init__(self) -> None:
        self._highest: Final[dict[str, int]] = {}

    def next(self, run_id: str) -> int:
        order = max(self._highest.get(run_id, 0) + 1, _now())
        self.saw(run_id, order)
        return order

    def saw(self, run_id: str, order: int) -> None:
        highest = self._highest
        if order > highest.get(run_id, 0):
            if len(highest) >= 10_000 and run_id not in highest:
                self._forget()
            highest[run_id] = order

    def _forget(self) -> None:
        # Below the clock's own reading they no longer count.
        now = _now()
        for run_id in [run_id for run_id, order in self._highest.items() if order < now]:
            del self._highest[run_id]


def _now() -> int:
    return time.time_ns() // 1000


def arranged(entries: Iterable[Entry], heads: Iterable[Head]) -> list[Entry]:
    """Return the entries in order of append, the same for every reader.

    Revisions of a step stand in their own order even where a writer with a slow clock knew nothing of the run. Equal places, from
    writers that did not know of each other, go by revision and key.
    """
    placed = sorted(zip(heads, entries, strict=True), key=lambda pair: (pair[0].step_id, pair[0].revision))
    keyed: list[tuple[int, int, str, Entry]] = []
    step, floor = None, 0
    for place, entry in placed:
        floor = place.order if place.step_id != step else max(floor, place.order)
        step = place.step_id
        keyed.append((floor, place.revision, entry.key, entry))
    keyed.sort(key=lambda item: item[:3])
    return [item[3] for item in keyed]


class Log(Sequence[StepRecord]):
    """A run's entries in order, each decoded when it is asked for."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries: Final = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | Sequence[StepRecord]:
        if isinstance(index, slice):
            return Log(self._entries[index])
        entry = self._entries[index]
        return decode(entry.body, entry.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # compares by content, as a list does

    def __repr__(self) -> str:
        return f"<{len(self)} step records>"
