"""A long log in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, overload

import msgspec

from durable_core.record import Status, StepRecord


class Head(msgspec.Struct, gc=False):
    """Where an entry stands in its step's chain."""

    step_id: str
    revision: int
    status: Status


class RecordLines(Sequence[StepRecord]):
    """Entries as the lines that `StepRecord.to_json` wrote, each decoded when it is asked for.

    What a store's `list` may return: 100,000 entries take a third of the memory that as many records take, and `heads` tells a
    runner where each stands without decoding it whole. `lines` may carry further members, such as a checksum.
    """

    __slots__ = ("_lines",)

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines: Final = lines

    def heads(self) -> Iterator[Head]:
        """Yield the head of each entry, in order."""
        return map(_head, self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[StepRecord]:
        return map(StepRecord.from_json, self._lines)

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> RecordLines: ...
    def __getitem__(self, index: int | slice) -> StepRecord | RecordLines:
        if isinstance(index, slice):
            return RecordLines(self._lines[index])
        return StepRecord.from_json(self._lines[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} step records>"


def heads_of(entries: Sequence[StepRecord]) -> Iterable[Head | StepRecord]:
    """Return what tells each entry's place: its head where that is cheaper than the record."""
    return entries.heads() if isinstance(entries, RecordLines) else entries


_head: Final = msgspec.json.Decoder(Head).decode
