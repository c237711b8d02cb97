"""A run's log in memory: as bytes, of which a record is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, overload

from durable_core.record import StepRecord


class Log(Sequence[StepRecord]):
    """Takes a third of the memory that the records would take, which tells in a run of 100,000 steps."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines: Final = lines

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | Sequence[StepRecord]:
        if isinstance(index, slice):
            return Log(self._lines[index])
        return StepRecord.from_json(self._lines[index])

    def __iter__(self) -> Iterator[StepRecord]:
        return map(StepRecord.from_json, self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"
