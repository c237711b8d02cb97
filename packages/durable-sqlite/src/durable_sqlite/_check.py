"""Checks that the indexes agree. An entry that damage removed from one index is still in another, or in the table."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Any, Final, cast

from durable_core import CorruptLog

from ._errors import ADVICE, file_of

_BY_SLOT: Final = "durable_steps indexed by sqlite_autoindex_durable_steps_1"  # run, step, revision
_IN_ORDER: Final = "durable_steps {} indexed by durable_steps_in_order"  # run, seq
_COUNT: Final = f"select count(*) from {_BY_SLOT} where run_id = ?1"
_RUN: Final = f"""
    select
        ({_COUNT}),
        (select count(*) from {_IN_ORDER.format("")} where run_id = ?1),
        (select count(*) from {_IN_ORDER.format("as entry")} where run_id = ?1
            and seq = (select seq from {_BY_SLOT} where run_id = ?1 and step_id = entry.step_id and revision = entry.revision)
            and revision <= (
                select revision from {_BY_SLOT} where run_id = ?1 and step_id = entry.step_id and revision > -1
                order by revision desc limit 1))"""
_RUN_AFTER: Final = (
    f"select (select min(run_id) from {_BY_SLOT} where run_id {{0}} ?1),"
    f" (select min(run_id) from {_IN_ORDER.format('')} where run_id {{0}} ?1)"
)
FIRST_RUN: Final = _RUN_AFTER.format(">=")
NEXT_RUN: Final = _RUN_AFTER.format(">")
_MOST_RUNS: Final = 100_000
_SIZE: Final = "select page_count * page_size from pragma_page_count, pragma_page_size"
_MOST_BYTES: Final = 16_000_000  # a larger file would take seconds


class Checked(Connection):
    """A connection that remembers what it has checked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.runs: Final[set[str]] = set()
        self.has_checked_flows = False


def check_run(connection: Connection, run_id: str) -> None:
    """Raise `CorruptLog` unless every entry of the run is found by its slot. A connection checks a run once."""
    checked = cast("Checked", connection).runs
    if run_id in checked:
        return
    by_slot, in_order, in_both = connection.execute(_RUN, (run_id,)).fetchone()
    if not by_slot == in_order == in_both:
        raise CorruptLog(damage_of(connection, run_id))
    if len(checked) >= _MOST_RUNS:
        checked.clear()
    checked.add(run_id)


def check_flows(connection: Connection) -> None:
    """Raise `CorruptLog` if a list of flows may lack a run. A connection checks once, and never a large file."""
    connection = cast("Checked", connection)
    if connection.has_checked_flows:
        return
    ((size,),) = connection.execute(_SIZE)
    if size <= _MOST_BYTES:
        (found,) = connection.execute("pragma integrity_check(durable_flows)").fetchone()
        if found != "ok":
            raise CorruptLog(f"{file_of(connection)}: a list of runs may lack some ({found}); {ADVICE}")
    connection.has_checked_flows = True


def count(connection: Connection, run_id: str) -> int:
    """Return how many entries the index of slots has of the run."""
    number: int
    (number,) = connection.execute(_COUNT, (run_id,)).fetchone()
    return number


def next_run(connection: Connection, question: str, after: str) -> str | None:
    """Return the run that `question` finds: the first from `after` on, or after it. None if there is none."""
    by_slot, in_order = connection.execute(question, (after,)).fetchone()
    if by_slot != in_order:
        raise CorruptLog(_differ(connection, f"the run after {after!r}"))
    if not isinstance(in_order, str | None):
        raise CorruptLog(f"{file_of(connection)} is damaged: a row has the run id {in_order!r}")
    return in_order


def damage_of(connection: Connection, run_id: str) -> str:
    """Say that the indexes disagree on the entries of the run."""
    return _differ(connection, f"the entries of run {run_id!r}")


def _differ(connection: Connection, what: str) -> str:
    return f"{file_of(connection)}: the indexes of durable_steps don't agree on {what}; {ADVICE}"
