"""Records as rows: what goes into a statement, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from sys import intern
from typing import Any, Final, cast

import msgspec

from durable_core import StepError, StepRecord

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
    "until": "timestamptz",
    "id": "text",
    "fingerprint": "text",
    "result": "json",
    "error": "json",
    "note": "json",
}
_NAMES: Final = ", ".join(_COLUMNS)
# A time that Python has no datetime for is read as the nearest one that it has; the driver would refuse all rows for it.
_READ_AS: Final = {
    "json": "t.{0}::text",
    "timestamptz": "case when t.{0} is not null then"
    " greatest(least(t.{0}, '9999-12-31 23:59:59.999999+00'), '0001-01-01 00:00+00') end",
}
_SELECTED: Final = ", ".join(_READ_AS.get(type_, "t.{0}").format(name) for name, type_ in _COLUMNS.items())

Row = tuple[Any, ...]
"""A record's values in the order of the columns."""

_values_of: Final = attrgetter(*_COLUMNS)
slot_of: Final = cast("Callable[[Any], tuple[str, str, int]]", itemgetter(0, 1, 2))
_encode: Final = msgspec.json.Encoder().encode
_decode_error: Final = msgspec.json.Decoder(StepError).decode


def rows_of(records: Iterable[StepRecord]) -> list[Row]:
    """Make rows; raises `RowRefused` where a record holds what is no JSON, so that it fails alone."""
    try:
        return [*map(_row_of, records)]
    except (TypeError, ValueError) as error:
        raise RowRefused(f"the record can't be written: {error}") from error


def _row_of(record: StepRecord) -> Row:
    *plain, result, error, note = _values_of(record)
    return (
        *plain,
        None if result is None else result.decode(),
        None if error is None else _encode(error).decode(),
        None if note is None else _encode(note).decode(),
    )


def size_of(record: StepRecord) -> int:
    """About how many bytes the record takes in a statement."""
    return 400 + len(record.result or b"") + len(repr(record.error)) + len(repr(record.note))


class Statements:
    """The SQL of a store on one table, and the records that it finds there."""

    def __init__(self, table: Table) -> None:
        self._table: Final = table.sql
        casts = ", ".join(f"{name}::json" if type_ == "json" else name for name, type_ in _COLUMNS.items())
        arrays = ", ".join(f"${n}::{type_.replace('json', 'text')}[]" for n, type_ in enumerate(_COLUMNS.values(), start=1))
        # Neither `returning` nor a union finds the row of a rival that commits while this waits; the row count does.
        self.insert: Final = (
            f"insert into {table.sql} ({_NAMES}) select {casts} from unnest({arrays}) as new({_NAMES}) on conflict do nothing"
        )
        self.holders: Final = (
            f"select {_SELECTED} from {table.sql} t join unnest($1::text[], $2::text[], $3::bigint[])"
            " as slot(run_id, step_id, revision) using (run_id, step_id, revision)"
        )
        self.newer: Final = (
            f"select {_SELECTED} from unnest($1::text[], $2::text[], $3::bigint[]) as known(run_id, step_id, revision)"
            f" cross join lateral (select * from {table.sql} where run_id = known.run_id and step_id = known.step_id"
            " and revision > known.revision order by revision desc limit 1) as t"
        )
        self.read: Final = f"select {_SELECTED} from {table.sql} t where run_id = $1 order by seq"
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

    def record(self, row: Iterable[Any], /) -> StepRecord:
        """Make a record of what the statements select; raises `RowRefused` for what is none."""
        fields = dict(zip(_COLUMNS, row, strict=True))
        run_id, step_id, result, error, note = map(fields.get, ("run_id", "step_id", "result", "error", "note"))
        try:
            # One string in memory for many rows, or for two columns.
            for name in ("run_id", "status", "kind"):
                fields[name] = intern(fields[name])
            if fields["name"] == step_id:
                fields["name"] = step_id
            fields["result"] = None if result is None else result.encode()
            fields["error"] = None if error is None else _decode_error(error)
            fields["note"] = None if note is None else msgspec.json.decode(note)
            return StepRecord(**fields)
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as refusal:
            raise RowRefused(
                f"{self._table}: the row of run {run_id!r}, step {step_id!r}, revision {fields['revision']} is no step record"
                f" ({refusal}): it was written by something else, or by a newer durable-postgres: then upgrade this one"
            ) from refusal
