"""What the page about this store says of SQL holds; its programs are run where all pages' are."""

import re
from pathlib import Path

import asyncpg
import pytest

from durable_core import StepError, StepRecord
from durable_core.testing._contract.flows import flow_entry
from durable_postgres import PostgresStore

pytestmark = pytest.mark.asyncio

PAGE = (Path(__file__).parents[2] / "docs" / "stores" / "postgres.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


async def test_the_queries_work(postgres_url: str, postgres_server_url: str) -> None:
    """The page's queries are valid, and find what they are for."""
    schema = postgres_url.rpartition("schema=")[2]
    async with PostgresStore.from_url(postgres_url) as store:
        await store.append(
            StepRecord(run_id="user-42", step_id="a", status="failure", error=StepError(type="KeyError", message="b"))
        )
        await store.append(StepRecord(run_id="user-42", step_id="a", revision=1, status="reopened"))
        await store.append(StepRecord(run_id="user-42", step_id="a", revision=2))
        await store.append(flow_entry("user-43", "parked"))
    queries = [code.replace("durable.steps", f"{schema}.steps") for _, code in BLOCKS if code.startswith("select")]
    connection = await asyncpg.connect(postgres_server_url)
    stands, failed, last, slow = [await connection.fetch(query) for query in queries]
    assert [tuple(row) for row in stands] == [("pay", "parked", 1)]
    assert [tuple(row) for row in failed] == [("user-42", "a", "KeyError", "b")]
    assert [row["revision"] for row in last] == [2]
    assert [(row["name"], row["count"]) for row in slow] == [("a", 1)]
    await connection.close()


async def test_the_columns_are_those_of_the_page(postgres_url: str, postgres_server_url: str) -> None:
    """The page names every column of the tables of the log, flows and wake-ups, with its type."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`\w+`(?:, `\w+`)*) \| .*\|$", PAGE.partition("## The table")[2], re.MULTILINE)
    told: dict[str, str] = {}
    for names, types in rows:
        columns, kinds = re.findall(r"\w+", names), re.findall(r"\w+", types)
        told |= dict(zip(columns, kinds * len(columns) if len(kinds) == 1 else kinds, strict=False))
    async with PostgresStore.from_url(postgres_url) as store:
        await store.list("run")
    connection = await asyncpg.connect(postgres_server_url)
    query = (
        "select attname, atttypid::regtype::text from pg_attribute where attrelid = any($1::text[]::regclass[]) and attnum > 0"
    )
    schema = postgres_url.rpartition("schema=")[2]
    found = await connection.fetch(query, [f"{schema}.steps", f"{schema}.steps_flows", f"{schema}.steps_wakes"])
    assert told == {name: type_.replace("timestamp with time zone", "timestamptz") for name, type_ in found}
    await connection.close()
