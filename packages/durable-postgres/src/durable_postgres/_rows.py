"""Records as rows, and the SQL statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from sys import intern
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from durable_core import StepError, StepRecord
from durable_core.record import Kind, Status
from durable_core.stores.flows import FLOW

from ._schema import Table
from .errors import RowDamaged, RowRefused

# We send and read JSON as text. A pool may have its own codecs for json, and JSON's `null` differs from NULL.
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
# Read a time that Python's datetime can't hold as the nearest one that it can. Otherwise the driver would refuse all rows.
READ_AS: Final = {
    "json": "t.{0}::text",
    "timestamptz": "case when t.{0} is not null then"
    " greatest(least(t.{0}, '9999-12-31 23:59:59.999999+00'), '0001-01-01 00:00+00') end",
}
_SELECTED: Final = ", ".join(READ_AS.get(type_, "t.{0}").format(name) for name, type_ in _COLUMNS.items())

slot_of: Final = cast("Callable[[StepRecord], tuple[str, str, int]]", attrgetter("run_id", "step_id", "revision"))
_encode: Final = msgspec.json.Encoder().encode
_decode_error: Final = msgspec.json.Decoder(StepError).decode


def as_json(records: Iterable[StepRecord]) -> str:
    """Encode records for the statement `insert`: one field for each column, bytes as base64.

    Raises `RowRefused` if a record contains something that JSON can't hold, so that only that record fails.
    """
    try:
        return _encode([*map(_with_text, records)]).decode()
    except (TypeError, ValueError) as error:
        raise RowRefused(f"the record can't be written: {error}") from error


def _with_text(record: StepRecord) -> StepRecord:
    """Put the record's JSON into text: the server refuses an escaped NUL when it parses JSON itself."""
    if record.error is None and record.note is None:
        return record
    error, note = (None if value is None else _encode(value).decode() for value in (record.error, record.note))
    return replace(record, error=error, note=note)


def size_of(record: StepRecord) -> int:
    """Return about how many bytes the record takes in a statement."""
    return 400 + len(record.result or b"") + len(repr(record.error)) + len(repr(record.note))


class Statements:
    """The SQL of a store on one table, and the conversion of rows to records."""

    def __init__(self, table: Table) -> None:
        self._table: Final = table.sql
        casts = ", ".join(f"{name}::json" if type_ == "json" else name for name, type_ in _COLUMNS.items())
        casts = casts.replace("result::", "convert_from(decode(result, 'base64'), 'UTF8')::")
        texts = ", ".join(f"{name} {'text' if type_ == 'json' else type_}" for name, type_ in _COLUMNS.items())
        # The row count shows lost slots. `returning` or a union would miss the row of a rival that commits while this waits.
        self.insert: Final = (
            f"insert into {table.sql} ({_NAMES}) select {casts}"
            f" from json_to_recordset($1::text::json) as new({texts}) on conflict do nothing"
        )
        # Notify in the statement that appends, so that watches hear of it only after the commit.
        added = f"with added as ({self.insert} returning run_id, step_id, revision, id, name, started_at)"
        count = f"""
            select count(*),
                (select count(pg_notify('{table.channel}', run_id)) from added where run_id = any($2::text[]))
            from added"""
        self.insert_and_tell: Final = added + count
        # One statement writes the index and the log, so neither exists without the other.
        self.insert_flows: Final = f"""
            {added}, indexed as (
                insert into {table.flows} as known (run_id, revision, name, state, started_at)
                select distinct on (run_id) run_id, revision, name, state, started_at
                from added join unnest($3::text[], $4::text[]) as flow(id, state) using (id)
                where step_id = '{FLOW}' order by run_id, revision desc
                on conflict (run_id) do update set revision = excluded.revision, name = excluded.name, state = excluded.state,
                    started_at = excluded.started_at where known.revision < excluded.revision
            ){count}"""
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
        # No inner `order by`, so that a long run isn't sorted in vain.
        self.read_short: Final = (
            f"select {_SELECTED} from unnest($1::text[]) as asked(run_id) cross join lateral"
            f" (select * from {table.sql} where run_id = asked.run_id limit $2) as t order by t.seq"
        )
        # Keeps entries that are appended meanwhile, in the log and in the index.
        self.clear: Final = f"""
            with cleared as (delete from {table.sql} where run_id = $1 returning step_id, revision)
            delete from {table.flows} where run_id = $1
            and revision <= (select max(revision) from cleared where step_id = '{FLOW}')"""
        # A loose index scan: one descent of the primary key for each run, however many steps it has.
        self.runs: Final = f"""
            with recursive found(run_id) as (
                (select run_id from {table.sql} where run_id >= $1 and run_id > $2 order by run_id limit 1)
                union all
                select (select t.run_id from {table.sql} t where t.run_id > found.run_id order by t.run_id limit 1)
                from found where starts_with(found.run_id, $1)
            )
            select run_id from found where starts_with(run_id, $1) limit $3"""

        self.flows: Final = _flows(table, "", "true")
        self.flows_named: Final = _flows(
            table, "cross join unnest($7::text[]) as of(name)", "left(f.name, 100) = left(of.name, 100) and f.name = of.name"
        )
        self.index: Final = (
            f"insert into {table.flows} select * from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[])"
        )
        # If the answer is lost, the statement runs again. It sets nothing twice.
        self.set_wakeups: Final = f"""
            with added as (
                insert into {table.wakes} (token, run_id, flow, at, shows_at) select token, run_id, flow, at, at
                from json_to_recordset($1::text::json) as new(token text, run_id text, flow text, at timestamptz)
                on conflict do nothing
            )
            select clock_timestamp()"""
        # Reads the first wake-ups of each flow from an index, thirty more than asked for: others may be taking some. Locks only
        # those that it takes. The time is a query of its own, or the index would not be used.
        self.take_wakeups: Final = f"""
            with clock(now) as materialized (select clock_timestamp()),
            first as materialized (
                select found.token from unnest($1::text[]) as of(flow) cross join lateral (
                    select token, shows_at from {table.wakes} w
                    where w.flow = of.flow and w.shows_at <= (select now from clock)
                    order by shows_at limit $2::bigint + 30
                ) as found
                order by found.shows_at limit $2::bigint + 30
            ),
            due as materialized (
                select w.token, w.shows_at from first join {table.wakes} w using (token)
                where w.shows_at <= (select now from clock)
                order by w.shows_at limit $2::bigint for update of w skip locked
            ),
            t as (
                update {table.wakes} w set shows_at = clock.now + $3::interval from due, clock where w.token = due.token
                returning w.run_id, w.flow, w.at, w.token, clock.now, due.shows_at
            )
            select t.run_id, t.flow, {READ_AS["timestamptz"].format("at")}, t.token, t.now from t order by t.shows_at"""
        self.clear_wakeups: Final = f"delete from {table.wakes} where token = any($1::text[])"

    def record(self, row: Iterable[Any], /) -> StepRecord:
        """Make a record from a selected row. Raises `RowDamaged` if the row isn't a record."""
        (run, step, revision, status, kind, name, attempt, started, ended, until, id_, fingerprint, result, error, note) = row
        try:
            return StepRecord(
                # Interned, so that many rows share one string.
                run_id=intern(run),
                step_id=step,
                revision=revision,
                status=cast("Status", intern(status)),
                kind=cast("Kind", intern(kind)),
                name=step if name == step else name,
                attempt=attempt,
                started_at=started,
                ended_at=ended,
                until=until,
                id=id_,
                fingerprint=fingerprint,
                result=None if result is None else result.encode(),
                error=None if error is None else _decode_error(error),
                note=None if note is None else msgspec.json.decode(note),
            )
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as refusal:
            raise RowDamaged(
                f"{self._table}: the row of run {run!r}, step {step!r}, revision {revision} is not a step record ({refusal});"
                " if a newer durable-postgres wrote it, upgrade this one; otherwise another program did"
            ) from refusal


def _flows(table: Table, names: str, is_named: str) -> str:
    """Return the SQL for a page of flows. It reads a page of each state and name from an index, then takes the first of all."""
    return f"""
        select found.started_at, found.run_id, {_SELECTED} from unnest($2::text[]) as stands(state) {names} cross join lateral (
            select f.run_id, f.revision, f.started_at from {table.flows} f
            where f.state = stands.state and {is_named} and starts_with(f.run_id, $1)
            and f.started_at >= coalesce($3::timestamptz, '-infinity')
            and (f.started_at, f.run_id) < (coalesce($4::timestamptz, 'infinity'), coalesce($5::text, ''))
            order by f.started_at desc, f.run_id desc limit $6
        ) as found left join {table.sql} t on t.run_id = found.run_id and t.step_id = '{FLOW}' and t.revision = found.revision
        order by found.started_at desc, found.run_id desc limit $6"""
