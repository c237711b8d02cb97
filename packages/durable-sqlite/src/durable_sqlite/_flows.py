"""The table of flows: an index that finds runs by state, name and start."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from sqlite3 import Connection
from typing import Any, Final

from durable_core import CorruptLog, StepRecord, StoreError
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, state_of

from ._check import check_flows
from ._errors import ADVICE, file_of
from ._rows import COLUMNS, REFUSED, fetch, text_of
from ._writing import reading

_INDEX: Final = """
    insert into durable_flows (run_id, revision, name, state, started_at) values (?, ?, ?, ?, ?)
    on conflict (run_id) do update set revision = excluded.revision, name = excluded.name, state = excluded.state,
        started_at = excluded.started_at where excluded.revision > revision"""
_NEWEST: Final = (
    f"select {', '.join(COLUMNS)} from durable_steps where run_id = ? and step_id = '{FLOW}' order by revision desc limit 1"
)
_FIND: Final = """
    select started_at, run_id, revision from durable_flows
    where {} and substr(run_id, 1, ?) = ? and started_at >= ? and (started_at, run_id) < (?, ?)
    order by started_at desc, run_id desc limit ?"""
_AFTER_ALL: Final = ("~", "")

Place = tuple[str, str]
"""When a flow began, and its run. Flows are ordered by this."""

_log: Final = logging.getLogger("durable_sqlite")


def index(connection: Connection, flow: StepRecord) -> None:
    """Update the row of a run's flow. Call this in the transaction that appends the entry."""
    row = (flow.run_id, flow.revision, flow.name, state_of(flow), text_of(flow.started_at))
    connection.execute(_INDEX, row)


def find(
    connection: Connection,
    prefix: str,
    names: Collection[str] | None,
    states: Collection[FlowState] | None,
    since: datetime | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[StepRecord]:
    """Return the newest entries of flows, the latest start first.

    Passes over an entry that can't be read, and raises its error only if there is nothing else to return. If nothing is found,
    also raises `CorruptLog` if the table has lost a flow.
    """
    groups = _groups(names, states)
    lower = "" if since is None else text_of(since)
    upper: Place = _AFTER_ALL if before is None else (text_of(before[0]), before[1])
    found: list[StepRecord] = []
    refusal: StoreError | None = None
    while (left := limit - len(found)) > 0:
        places: list[tuple[str, str, int]] = []
        with reading(connection):
            for where, values in groups:
                asked = (*values, len(prefix), prefix, lower, *upper, left)
                places += connection.execute(_FIND.format(where), asked)
            for began, run_id, revision in sorted(places, reverse=True)[:left]:
                upper = began, run_id
                try:
                    found.append(_newest(connection, run_id, revision))
                except REFUSED as error:
                    _log.warning("a run is passed over: %s", error)
                    refusal = error
        if len(places) < left:
            break
    if refusal is not None and not found:
        raise refusal
    if not found:  # a caller that lists all flows gets here in the end
        check_flows(connection)
    return found


def _newest(connection: Connection, run_id: str, revision: int) -> StepRecord:
    """Return the flow's newest entry. Raises `CorruptLog` unless it has this revision."""
    flow = fetch(connection, _NEWEST, (run_id,))
    if flow is None or flow.revision != revision:
        differs = f"the table durable_flows has run {run_id!r} at revision {revision}, but durable_steps doesn't"
        raise CorruptLog(f"{file_of(connection)}: {differs}; {ADVICE}")
    return flow


def _groups(names: Collection[str] | None, states: Collection[FlowState] | None) -> list[tuple[str, tuple[Any, ...]]]:
    """Return SQL conditions. For each of them an index has the flows in order."""
    if names is not None:
        stands = FLOW_STATES if states is None else frozenset(states)
        return [("name = ? and state = ?", (name, state)) for name in frozenset(names) for state in stands]
    if states is not None:
        return [("state = ?", (state,)) for state in frozenset(states)]
    return [("true", ())]
