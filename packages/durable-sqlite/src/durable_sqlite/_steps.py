"""The table of steps, which is the log."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection
from typing import Final

from durable_core import CorruptLog, StepRecord, StoreError
from durable_core.stores.flows import FLOW

from . import _flows
from ._errors import file_of
from ._rows import COLUMNS, REFUSED, record_of, row_of
from ._writing import writing

_NAMES: Final = ", ".join(COLUMNS)
_INSERT: Final = (
    f"insert into durable_steps ({_NAMES}) values ({', '.join('?' * len(COLUMNS))})"
    " on conflict (run_id, step_id, revision) do nothing"
)
_AT: Final = f"select {_NAMES} from durable_steps where run_id = ? and step_id = ? and revision = ?"
_NEWER: Final = (
    f"select {_NAMES} from durable_steps where run_id = ? and step_id = ? and revision > ? order by revision desc limit 1"
)
_RUN: Final = f"select seq, {_NAMES} from durable_steps where run_id = ? and seq > ? order by seq limit ?"
_NEXT_RUN: Final = "select run_id from durable_steps where run_id > ? order by run_id limit 1"


def append(connection: Connection, records: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """Claim the slots of records in one commit; return for each the record that holds its slot."""
    with writing(connection):
        return [claim(connection, record) for record in records]


def claim(connection: Connection, record: StepRecord) -> StepRecord:
    """Return the record that holds the slot: this one if it was empty. It is durable once the transaction is committed."""
    if connection.execute(_INSERT, row_of(record)).rowcount:
        if record.step_id == FLOW:
            _flows.index(connection, record)
        return record
    row = connection.execute(_AT, (record.run_id, record.step_id, record.revision)).fetchone()
    holder = record_of(connection, row)
    return record if holder.id == record.id else holder


def newest(connection: Connection, run_id: str, step_id: str, above: int = -1) -> StepRecord | None:
    """Return the step's newest entry, if its revision is above the one given."""
    row = connection.execute(_NEWER, (run_id, step_id, above)).fetchone()
    return None if row is None else record_of(connection, row)


def newer(connection: Connection, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
    """Return the newest entries of those steps that have one above the revision that is known.

    One that can't be read hides no other: raises its error where there is nothing else to return.
    """
    found: list[StepRecord] = []
    refusal: StoreError | None = None
    for step in known:
        try:
            if record := newest(connection, *step):
                found.append(record)
        except REFUSED as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    return found


def page(connection: Connection, run_id: str, after: int = 0, limit: int = -1) -> tuple[int, Sequence[StepRecord]]:
    """Return entries of a run in the order of append, those after a place, and the place of the last one; -1 is no limit."""
    found: list[StepRecord] = []
    last = after
    for last, *row in connection.execute(_RUN, (run_id, after, limit)):  # noqa: B007  # it is returned
        found.append(record_of(connection, row))
    return last, found


def run_ids(connection: Connection, prefix: str, after: str, limit: int) -> Sequence[str]:
    """Return ids of runs in order, those after one: a descent of the index for each, however many steps it has."""
    found: list[str] = []
    if after < prefix:
        after = prefix
        if connection.execute("select 1 from durable_steps where run_id = ? limit 1", (prefix,)).fetchone():
            found.append(prefix)
    while len(found) < limit and (row := connection.execute(_NEXT_RUN, (after,)).fetchone()):
        (after,) = row
        if not isinstance(after, str):
            raise CorruptLog(f"{file_of(connection)} is damaged: a row has the run id {after!r}")
        if not after.startswith(prefix):
            break
        found.append(after)
    return found


def clear(connection: Connection, run_id: str) -> None:
    """Remove the run's entries, all at once."""
    with writing(connection):
        connection.execute("delete from durable_steps where run_id = ?", (run_id,))
        connection.execute("delete from durable_flows where run_id = ?", (run_id,))
