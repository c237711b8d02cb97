"""Fills the table of flows from a log that is older than the table."""

from __future__ import annotations

import logging
from typing import Final

from asyncpg import Connection

from durable_core import StepRecord
from durable_core.stores.flows import FLOW, state_of

from ._rows import Statements
from ._schema import Table
from .errors import RowRefused

_PAGE: Final = 1_000
_log: Final = logging.getLogger("durable_postgres")


async def fill(connection: Connection, table: Table) -> None:
    """Write the state of each run with a flow, in the transaction that made the table."""
    statements = Statements(table)
    # Keep processes of an older version from appending meanwhile: they don't write the table of flows.
    await connection.execute(f"lock table {table.sql} in share row exclusive mode")
    last = ""
    while runs := [run_id for (run_id,) in await connection.fetch(statements.runs, "", last, _PAGE)]:
        last = runs[-1]
        flows: list[StepRecord] = []
        for row in await connection.fetch(statements.newer, runs, [FLOW] * len(runs), [-1] * len(runs)):
            try:
                flows.append(statements.record(row))
            except RowRefused as error:
                _log.warning("a run is left out of the table of flows: %s", error)
        await connection.execute(
            statements.index,
            [flow.run_id for flow in flows],
            [flow.revision for flow in flows],
            [flow.name for flow in flows],
            [state_of(flow) for flow in flows],
            [flow.started_at for flow in flows],
        )
