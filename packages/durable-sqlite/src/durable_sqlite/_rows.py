"""Records as rows of the table, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from sqlite3 import Connection, OperationalError
from sys import intern
from typing import Any, Final, ParamSpec, TypeVar, cast, get_args
from zlib import crc32

import msgspec

from durable_core import CorruptLog, StepError, StepRecord, StoreError
from durable_core.record import Kind, Status

from ._errors import ADVICE, code_of, file_of

P = ParamSpec("P")
T = TypeVar("T")

COLUMNS: Final = (*StepRecord.__struct_fields__, "crc")
_STATUSES: Final = get_args(Status)
_KINDS: Final = get_args(Kind)
_MOST_BYTES: Final = 900_000_000  # SQLite takes a billion in a row

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode
_decode_error: Final = msgspec.json.Decoder(StepError).decode


class RowRefused(StoreError):
    """The record does not fit in a row."""


REFUSED: Final = (RowRefused, CorruptLog)
"""Errors that concern one row only."""


def size_of(record: StepRecord) -> int:
    """Return about how many bytes the record takes."""
    return 400 + len(record.result or b"") + len(repr(record.note))


def text_of(moment: datetime) -> str:
    """Format a time so that it sorts as text and SQLite's functions can read it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def row_of(record: StepRecord) -> tuple[Any, ...]:
    """Return the values of the columns. The last one is a checksum over the others."""
    if size_of(record) > _MOST_BYTES or max(record.revision, record.attempt) >= 2**63:
        raise RowRefused(f"step {record.step_id!r} of run {record.run_id!r} is larger than what SQLite holds in a row")
    try:
        row = (
            record.run_id,
            record.step_id,
            record.revision,
            record.status,
            record.kind,
            record.name,
            None if record.result is None else record.result.decode(),
            None if record.error is None else _encode(record.error).decode(),
            None if record.note is None else _encode(record.note).decode(),
            None if record.until is None else text_of(record.until),
            record.attempt,
            text_of(record.started_at),
            text_of(record.ended_at),
            record.id,
            record.fingerprint,
        )
        return *row, _checksum(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowRefused(f"step {record.step_id!r} of run {record.run_id!r} can't be written: {error}") from error


def record_of(connection: Connection, row: Sequence[Any]) -> StepRecord:
    """Make a record from the values of the columns. Raises `CorruptLog` for a row that this version can't read."""
    said, crc = row[:-1], row[-1]
    if crc is not None and crc != _checksum(said):  # null: written by a version without checksums
        raise CorruptLog(f"{_place(connection, row)}: its checksum doesn't match; {ADVICE}")
    run, step, revision, status, kind, name, result, error, note, until, attempt, started, ended, id_, fingerprint = said
    try:
        if not (
            type(revision) is type(attempt) is int and type(id_) is str and (fingerprint is None or type(fingerprint) is str)
        ):
            raise TypeError("a column holds a value of another type")
        return StepRecord(
            # Interned, so that many rows share one string.
            run_id=intern(run),
            step_id=step,
            revision=revision,
            status=cast("Status", intern(status)),
            kind=cast("Kind", intern(kind)),
            name=step if name == step else name,
            result=None if result is None else result.encode(),
            error=None if error is None else _decode_error(error),
            note=None if note is None else _decode(note),
            until=None if until is None else datetime.fromisoformat(until),
            attempt=attempt,
            started_at=datetime.fromisoformat(started),
            ended_at=datetime.fromisoformat(ended),
            id=id_,
            fingerprint=fingerprint,
        )
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as refusal:
        if type(status) is type(kind) is str and not (status in _STATUSES and kind in _KINDS):
            newer = f"{_place(connection, row)} was written by a newer version: upgrade durable-core ({refusal})"
            raise CorruptLog(newer) from refusal
        raise CorruptLog(f"{_place(connection, row)} is not a step record: {refusal}") from refusal


def _place(connection: Connection, row: Sequence[Any]) -> str:
    run, step, revision, *_ = row
    return f"{file_of(connection)}: the row of run {run!r}, step {step!r}, revision {revision!r}"


def naming_rows(read: Callable[P, T]) -> Callable[P, T]:
    """Make a reader name the row with text that is not UTF-8: SQLite's error names only the column."""

    @wraps(read)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except OperationalError as error:
            if code_of(error) is not None:
                raise
            connection: Any = args[0]
            connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
            try:
                read(*args, **kwargs)  # raises for the checksum, and names the row
                raise
            finally:
                connection.text_factory = str

    return named


@naming_rows
def fetch(connection: Connection, query: str, values: Sequence[str | int]) -> StepRecord | None:
    """Return the record that a query finds."""
    row = connection.execute(query, values).fetchone()
    return None if row is None else record_of(connection, row)


def _checksum(values: Sequence[Any]) -> int:
    """Return the CRC-32 of the values as a JSON array."""
    return crc32(_encode(values))
