"""Records as rows: what goes into a statement, and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import attrgetter
from sys import intern
from typing import Any, Final, cast

import msgspec
from asyncpg import Connection

from durable_core import StepError, StepRecord
from durable_core.record import Kind, Status

from ._schema import Table
from .errors import RowRefused

# JSON travels as text: a pool may have codecs of its own for json, and `null` is a value where NULL is none.
_COLUMNS: Final = {
    "run_id": "text",
    "step_id": "text",
    "revision": "bigint",
    "status": "text",
    "kind": "text",
    "name": "text",
    "attempt": "bigint",
    "started_at": "timestamptz",
    "ended_at": "timestamptz",
    "id": "text",
    "fingerprint": "text",
    "result": "json",
    "error": "json",
    "note": "json",
    "until": "timestamptz",
}
_NAMES: Final = ", ".join(_COLUMNS)
_SELECTED: Final = ", ".join(f"t.{name}::text" if type_ == "json" else f"t.{name}" for name, type_ in _COLUMNS.items())


class Row(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A record as a statement takes it, in the order of the columns."""

    run_id: str
    step_id: str
    revision: int
    status: str
    kind: str
    name: str
    attempt: int
    started_at: datetime
    ended_at: datetime
    id: str
    fingerprint: str | None = None
    result: str | None = None
    error: str | None = None
    note: str | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, record: StepRecord) -> Row:
        return cls(
            record.run_id,
            record.step_id,
            record.revision,
            record.status,
            record.kind,
            record.name,
            record.attempt,
            record.started_at,
            record.ended_at,
            record.id,
            record.fingerprint,
            None if record.result is None else record.result.decode(),
            None if record.error is None else _encode(record.error).decode(),
            None if record.note is None else _encode(record.note).decode(),
            record.until,
        )

    @classmethod
    def of_all(cls, records: Iterable[StepRecord]) -> list[Row]:
        """Make the rows; raises `RowRefused` where a record holds what is no JSON, so that it fails alone."""
        try:
            return [*map(cls.of, records)]
        except (TypeError, ValueError) as error:
            raise RowRefused(f"the record can't be written: {error}") from error

    @property
    def values(self) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self)


slot_of: Final = cast("Callable[[Row], tuple[str, str, int]]", attrgetter("run_id", "step_id", "revision"))


def size_of(record: StepRecord) -> int:
    """About how many bytes the record takes in a statement."""
    size = 400 if record.result is None else 400 + len(record.result)
    if record.error is not None:
        size += len(record.error.message) + len(record.error.traceback)
    if record.note is not None:
        with suppress(TypeError, ValueError):  # the row itself will be refused
            size += len(_encode(record.note))
    return size


_encode: Final = msgspec.json.Encoder().encode
_decode_error: Final = msgspec.json.Decoder(StepError).decode


def as_json(rows: Sequence[Row]) -> str:
    return _encode(rows).decode()


def _aware(moment: datetime) -> datetime:
    # asyncpg writes the last moment that there is as infinity, and reads that without a zone.
    return moment if moment.tzinfo is UTC else moment.replace(tzinfo=UTC)


class Statements:
    """The SQL of a store on one table, and what it finds there."""

    def __init__(self, table: Table) -> None:
        self._table: Final = table.sql
        values = ", ".join(
            f"${number}::text::json" if type_ == "json" else f"${number}"
            for number, type_ in enumerate(_COLUMNS.values(), start=1)
        )
        casts = ", ".join(f"{name}::json" if type_ == "json" else name for name, type_ in _COLUMNS.items())
        texts = ", ".join(f"{name} {'text' if type_ == 'json' else type_}" for name, type_ in _COLUMNS.items())
        select = f"select {_SELECTED} from {table.sql} t"
        # Neither `returning` nor a union finds the row of a rival that commits while this waits; the row count does.
        insert = f"insert into {table.sql} ({_NAMES})"
        self.insert: Final = f"{insert} values ({values}) on conflict do nothing"
        self.insert_many: Final = (
            f"{insert} select {casts} from json_to_recordset($1::text::json) as new({texts}) on conflict do nothing"
        )
        self.holders: Final = (
            f"{select} join unnest($1::text[], $2::text[], $3::bigint[]) as slot(run_id, step_id, revision)"
            " using (run_id, step_id, revision)"
        )
        self.newest: Final = (
            f"select {_SELECTED} from unnest($1::text[], $2::text[]) as asked(run_id, step_id) cross join lateral (select * from"
            f" {table.sql} where run_id = asked.run_id and step_id = asked.step_id order by revision desc limit 1) as t"
        )
        self.newer: Final = (
            f"select {_SELECTED} from unnest($1::text[], $2::text[], $3::bigint[]) as known(run_id, step_id, revision)"
            f" cross join lateral (select * from {table.sql} where run_id = known.run_id and step_id = known.step_id"
            " and revision > known.revision order by revision desc limit 1) as t"
        )
        self.read: Final = f"{select} where run_id = $1 order by seq"
        # Without an order inside, so that a long run costs no sort only to be read another way.
        self.read_short: Final = (
            f"select {_SELECTED} from unnest($1::text[]) as asked(run_id) cross join lateral"
            f" (select * from {table.sql} where run_id = asked.run_id limit $2) as t order by t.seq"
        )
        self.clear: Final = f"delete from {table.sql} where run_id = $1"
        # A loose index scan: one descent of the primary key for each run, however many steps it has.
        self.runs: Final = f"""
            with recursive found(run_id) as (
                (select run_id from {table.sql} where run_id >= $1 and run_id > $2 order by run_id limit 1)
                union all
                select (select t.run_id from {table.sql} t where t.run_id > found.run_id order by t.run_id limit 1)
                from found where starts_with(found.run_id, $1)
            )
            select run_id from found where starts_with(run_id, $1) limit $3"""
        self._untimely: Final = f"""
            select run_id, step_id, revision from {table.sql} where run_id = any($1::text[]) and exists (
                select from unnest(array[started_at, ended_at, until]) as time(at)
                where isfinite(at) and at not between '0001-01-01 00:00+00' and '9999-12-31 23:59:59.999999+00') limit 1"""

    async def records(
        self, rows: Awaitable[Sequence[Iterable[Any]]], connection: Connection, run_ids: Iterable[str], seconds: float
    ) -> list[StepRecord]:
        """Await rows of these runs and make records of them; raises `RowRefused` for a row that is none."""
        try:
            return [*map(self.record, await rows)]
        except OverflowError as error:  # a time that Python has no datetime for, in a row that the driver does not name
            for run_id, step_id, revision in await connection.fetch(self._untimely, [*run_ids], timeout=seconds):
                raise self._no_record(run_id, step_id, revision, error) from error
            raise RowRefused(f"{self._table} has a row that can't be read: {error}") from error

    def record(self, row: Iterable[Any], /) -> StepRecord:
        """Make a record of what the statements select; raises `RowRefused` for what is none."""
        (run_id, step_id, revision, status, kind, name, attempt, started, ended, id_, fingerprint, result, error, note, until) = (
            row
        )
        try:
            return StepRecord(
                # One string in memory for many rows, or for two columns.
                run_id=intern(run_id),
                step_id=step_id,
                revision=revision,
                status=cast("Status", intern(status)),
                kind=cast("Kind", intern(kind)),
                name=step_id if name == step_id else name,
                result=None if result is None else result.encode(),
                error=None if error is None else _decode_error(error),
                note=None if note is None else msgspec.json.decode(note),
                until=None if until is None else _aware(until),
                attempt=attempt,
                started_at=_aware(started),
                ended_at=_aware(ended),
                id=id_,
                fingerprint=fingerprint,
            )
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as refusal:
            raise self._no_record(run_id, step_id, revision, refusal) from refusal

    def _no_record(self, run_id: str, step_id: str, revision: int, refusal: Exception) -> RowRefused:
        error = RowRefused(
            f"{self._table}: the row of run {run_id!r}, step {step_id!r}, revision {revision} is no step record ({refusal}):"
            " it was written by something else, or by a newer durable-postgres: then upgrade this one"
        )
        error.step = run_id, step_id
        return error
