"""The table of steps, which is the log."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection
from typing import Final

from durable_core import CorruptLog, StepRecord, StoreError
from durable_core.stores.flows import FLOW

from . import _flows
from ._check import FIRST_RUN, NEXT_RUN, check_run, count, damage_of, next_run
from ._rows import COLUMNS, REFUSED, fetch, naming_rows, record_of, row_of
from ._writing import reading, writing

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


def append(connection: Connection, records: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """Claim the slots of records in one commit. Return the record that holds each slot."""
    with writing(connection):
        return [claim(connection, record) for record in records]


def claim(connection: Connection, record: StepRecord) -> StepRecord:
    """Put the record into its slot if that is empty. Return the holder of the slot; a commit makes it durable."""
    check_run(connection, record.run_id)
    if connection.execute(_INSERT, row_of(record)).rowcount:
        if record.step_id == FLOW:
            _flows.index(connection, record)
        return record
    holder = fetch(connection, _AT, (record.run_id, record.step_id, record.revision))
    if holder is None:
        raise CorruptLog(damage_of(connection, record.run_id))
    return record if holder.id == record.id else holder


def newest(connection: Connection, run_id: str, step_id: str, above: int = -1) -> StepRecord | None:
    """Return the step's newest entry, if its revision is greater than `above`."""
    check_run(connection, run_id)
    return fetch(connection, _NEWER, (run_id, step_id, above))


def newer(connection: Connection, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
    """Return the newest entry of each step that has a higher revision than the known one.

    Passes over an entry that can't be read, and raises its error only if there is nothing else to return.
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


@naming_rows
def page(
    connection: Connection, run_id: str, after: int = 0, limit: int = -1, *, before: int = 0
) -> tuple[int, Sequence[StepRecord]]:
    """Return up to `limit` entries of a run after `after`, in order of append, and where the last one is. -1 is no limit.

    `before` is how many entries the earlier pages had. Raises `CorruptLog` on the last page if an entry was missing.
    """
    found: list[StepRecord] = []
    last = after
    with reading(connection):
        for row in connection.execute(_RUN, (run_id, after, limit)):
            if row[0] <= last or row[1] != run_id:
                raise CorruptLog(damage_of(connection, run_id))
            last = row[0]
            found.append(record_of(connection, row[1:]))
        if len(found) != limit and before + len(found) < count(connection, run_id):
            raise CorruptLog(damage_of(connection, run_id))
    return last, found


def run_ids(connection: Connection, prefix: str, after: str, limit: int) -> Sequence[str]:
    """Return up to `limit` run ids after `after`, in order. Looks up each run in the indexes, however many steps it has."""
    found: list[str] = []
    question = FIRST_RUN if after < prefix else NEXT_RUN
    after = max(after, prefix)
    while len(found) < limit and (run_id := next_run(connection, question, after)) is not None:
        if not run_id.startswith(prefix):
            break
        found.append(run_id)
        question, after = NEXT_RUN, run_id
    return found


def clear(connection: Connection, run_id: str) -> None:
    """Remove the run's entries, all at once."""
    with writing(connection):
        connection.execute("delete from durable_steps where run_id = ?", (run_id,))
        connection.execute("delete from durable_flows where run_id = ?", (run_id,))
