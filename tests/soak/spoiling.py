"""Runs that can't be read, and must hide no other: damaged ones, and ones that a newer version wrote before it was taken back."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import msgspec
from msgspec.structs import force_setattr

from durable_core import Flow, open_store
from durable_core.record import new_id

SPOILT: Final[tuple[tuple[str, str | int], ...]] = (("attempt", 0), ("kind", "later"), ("status", "melted"), ("attempt", 0))
"""Fields, and values that can't be read: a number that no entry has, a kind and a status that this version does not know."""

SPOILT_RUNS: Final = "spoilt"


async def spoil(url: str, flow: Flow[..., Any], run_id: str, field: str, value: str | int) -> None:
    """Start a run, and make the newest entry of its flow unreadable."""
    async with open_store(url) as store:
        await flow.start(store, run_id)
        asked = await store.get(run_id, "$flow")
        assert asked is not None
        if not url.startswith("postgres"):
            entry = msgspec.structs.replace(asked, id=new_id(), revision=asked.revision + 1)
            force_setattr(entry, field, value)
            await store.append(entry)
            return
    schema = dict(part.split("=") for part in urlsplit(url).query.split("&"))["schema"]  # that store checks what it writes
    connection = await asyncpg.connect(urlsplit(url)._replace(query="").geturl())
    try:
        await connection.execute(f"update {schema}.steps set {field} = $1 where run_id = $2", value, run_id)
    finally:
        await connection.close()
