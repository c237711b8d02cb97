"""The table of flows, which finds runs by how they stand."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from sqlite3 import Connection
from typing import Any, Final

from durable_core import StepRecord, StoreError
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, state_of

from ._rows import COLUMNS, REFUSED, record_of, text_of

_INDEX: Final = """
    insert into durable_flows (run_id, revision, name, state, started_at) values (?, ?, ?, ?, ?)
    on conflict (run_id) do update set revision = excluded.revision, name = excluded.name, state = excluded.state,
        started_at = excluded.started_at where excluded.revision > revision"""
_NEWEST: Final = f"select {', '.join(COLUMNS)} from durable_steps where run_id = ? and step_id = '{FLOW}' and revision = ?"
_FIND: Final = """
    select started_at, run_id, revision from durable_flows
    where {} and substr(run_id, 1, ?) = ? and started_at >= ? and (started_at, run_id) < (?, ?)
    order by started_at desc, run_id desc limit ?"""
_AFTER_ALL: Final = ("~", "")

Place = tuple[str, str]
"""When a flow began, and its run: what flows are ordered by."""

_log: Final = logging.getLogger("durable_sqlite")


def index(connection: Connection, flow: StepRecord) -> None:
    """Note how a run stands, in the transaction that appends the entry."""
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
    """Return the newest entries of flows, those that began last first.

    One that can't be read hides no other: raises its error where there is nothing else to return.
    """
    groups = _groups(names, states)
    lower = "" if since is None else text_of(since)
    upper: Place = _AFTER_ALL if before is None else (text_of(before[0]), before[1])
    found: list[StepRecord] = []
    refusal: StoreError | None = None
    while (left := limit - len(found)) > 0:
        places: list[tuple[str, str, int]] = []
        for where, values in groups:
            asked = (*values, len(prefix), prefix, lower, *upper, left)
            places += connection.execute(_FIND.format(where), asked)
        for began, run_id, revision in sorted(places, reverse=True)[:left]:
            upper = began, run_id
            try:
                if row := connection.execute(_NEWEST, (run_id, revision)).fetchone():  # else somebody removed it by hand
                    found.append(record_of(connection, row))
            except REFUSED as error:
                _log.warning("a run is passed over: %s", error)
                refusal = error
        if len(places) < left:
            break
    if refusal is not None and not found:
        raise refusal
    return found


def _groups(names: Collection[str] | None, states: Collection[FlowState] | None) -> list[tuple[str, tuple[Any, ...]]]:
    """Return conditions for each of which an index holds the flows in order."""
    if names is not None:
        stands = FLOW_STATES if states is None else frozenset(states)
        return [("name = ? and state = ?", (name, state)) for name in frozenset(names) for state in stands]
    if states is not None:
        return [("state = ?", (state,)) for state in frozenset(states)]
    return [("true", ())]
