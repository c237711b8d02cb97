"""A long log in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar, overload

import msgspec

from durable_core.errors import StoreError
from durable_core.record import Status, StepRecord

T = TypeVar("T")


class Head(msgspec.Struct, gc=False):
    """Where an entry stands in its step's chain."""

    step_id: str
    revision: int
    status: Status


class RecordLines(Sequence[StepRecord]):
    """Entries as the lines that `StepRecord.to_json` wrote, each decoded when it is asked for.

    What a store's `list` may return: 100,000 entries take a third of the memory that as many records take, and `heads` tells a
    runner where each stands without decoding it whole. `lines` may carry further members, such as a checksum. A store that
    knows the `heads` already gives them, one for each line. `where` names the place of the n-th entry,
    counted from 1, in errors.
    """

    __slots__ = ("_heads", "_lines", "_numbers", "_where")

    def __init__(
        self, lines: Sequence[bytes], *, heads: Sequence[Head] | None = None, where: Callable[[int], str] = "entry {}".format
    ) -> None:
        self._lines: Final = lines
        self._heads: Final = heads
        self._where: Final = where
        self._numbers = range(1, len(lines) + 1)

    def heads(self) -> Iterator[Head]:
        """Yield the head of each entry, in order. A damaged entry is `CorruptLog`."""
        return self._decoded(_head) if self._heads is None else iter(self._heads)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[StepRecord]:
        return self._decoded(StepRecord.from_json)

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> RecordLines: ...
    def __getitem__(self, index: int | slice) -> StepRecord | RecordLines:
        if isinstance(index, slice):
            some = RecordLines(self._lines[index], heads=self._heads and self._heads[index], where=self._where)
            some._numbers = self._numbers[index]
            return some
        try:
            return StepRecord.from_json(self._lines[index])
        except StoreError as error:
            raise self._located(error, self._numbers[index]) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} step records>"

    def _decoded(self, decode: Callable[[bytes], T]) -> Iterator[T]:
        for number, line in zip(self._numbers, self._lines, strict=True):
            try:
                decoded = decode(line)
            except StoreError as error:
                raise self._located(error, number) from error
            yield decoded

    def _located(self, error: StoreError, number: int) -> StoreError:
        return type(error)(f"{self._where(number)}: {error}")


def heads_of(entries: Sequence[StepRecord]) -> Iterable[Head | StepRecord]:
    """Return the heads of lines, and records themselves, for they are decoded already."""
    return entries.heads() if isinstance(entries, RecordLines) else entries


_decode_head: Final = msgspec.json.Decoder(Head).decode


def _head(line: bytes) -> Head:
    try:
        return _decode_head(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        record = StepRecord.from_json(line)  # which says what is wrong with the line
        return Head(record.step_id, record.revision, record.status)
