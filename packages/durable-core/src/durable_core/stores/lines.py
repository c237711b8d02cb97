"""Long logs in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar, overload

import msgspec

from durable_core.errors import StoreError
from durable_core.record import Status, StepRecord

T = TypeVar("T")


class Head(msgspec.Struct, gc=False):
    """The place of an entry in its step's chain."""

    step_id: str
    revision: int
    status: Status
    note: msgspec.Raw = msgspec.Raw()

    @property
    def answered(self) -> bool:
        """True if the step's note says that it answered an exception of its flow."""
        return b'"answered":' in bytes(self.note)


class RecordLines(Sequence[StepRecord]):
    """Entries as the lines that `StepRecord.to_json` wrote. Each is decoded when it is accessed.

    A store's `list` may return this: 100,000 entries take a third of the memory of as many records, and a runner uses `heads` to
    find each entry's place without decoding all of it. The JSON in `lines` may have more members, such as a checksum. `where`
    returns the place of the n-th entry, counted from 1, for errors.
    """

    __slots__ = ("_lines", "_where")

    def __init__(self, lines: Sequence[bytes], *, where: Callable[[int], str] = "entry {}".format) -> None:
        self._lines: Final = lines
        self._where: Final = where

    def heads(self) -> Iterator[Head]:
        """Yield the head of each entry, in order. Raises `CorruptLog` for a damaged entry."""
        return (self._decoded(index, _head) for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[StepRecord]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        return self._decoded(index, StepRecord.from_json)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    def __repr__(self) -> str:
        return f"<{len(self)} step records>"

    def _decoded(self, index: int, decode: Callable[[bytes], T]) -> T:
        line = self._lines[index]
        try:
            return decode(line)
        except StoreError as error:
            raise type(error)(f"{self._where(range(1, len(self) + 1)[index])}: {error}") from error


def heads_of(entries: Sequence[StepRecord]) -> Iterable[Head | StepRecord]:
    """Return the heads of lines; return records as they are, because they are already decoded."""
    return entries.heads() if isinstance(entries, RecordLines) else entries


_decode_head: Final = msgspec.json.Decoder(Head).decode


def _head(line: bytes) -> Head:
    try:
        return _decode_head(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        record = StepRecord.from_json(line)  # which says what is wrong with the line
        return Head(record.step_id, record.revision, record.status, msgspec.Raw(msgspec.json.encode(record.note)))
