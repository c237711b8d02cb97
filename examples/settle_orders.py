"""Settle a day's orders: a nightly job that may be killed at any moment, and is then simply started again.

`python examples/settle_orders.py` does just that to it: see `kill_and_resume.py`, which is no part of the job.

A step that is recorded never runs again. One that dies after its effect and before its record does, so each effect here is one
that may be repeated: rows are keyed by the step's idempotency key, and files are replaced whole.
"""

import csv
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from durable_core import Runner, StepEvent, Store, current_step, exponential

DAY = date(2026, 3, 31)
RUN_ID = f"settle-{DAY}"
ORDERS = Path(__file__).with_name("orders.csv")
BATCH = 50


@dataclass(frozen=True)
class Order:
    id: str
    placed: datetime
    customer: str
    name: str
    currency: str
    amount: Decimal  # below zero for a refund


@dataclass(frozen=True)
class Reject:
    line: int
    reason: str
    fields: list[str]


@dataclass(frozen=True)
class Intake:
    orders: list[Order]
    rejects: list[Reject]


@dataclass(frozen=True)
class Summary:
    day: date
    orders: int
    refunds: int
    rejected: int
    invoices: int
    total: Decimal  # euros


async def settle(store: Store, folder: Path, on_event: Callable[[StepEvent], None] | None = None) -> Summary:
    """Hold the run, and go through its steps."""
    async with Runner(
        store,
        RUN_ID,
        max_attempts=3,
        retry_delay=exponential(0.1),
        retry_on=(OSError, sqlite3.OperationalError),
        lock_wait=10,
        on_event=on_event,
    ) as runner:
        return await settle_by(runner, folder)


async def settle_by(runner: Runner, folder: Path) -> Summary:
    """The flow is plain Python; each effect, and each answer from outside, is a step."""
    rates = await runner.step("fetch-rates", fetch_rates, DAY)
    intake = await runner.step("read-orders", read_orders, ORDERS, rates)
    await runner.step("report-rejects", report_rejects, folder, intake.rejects)
    batches = [intake.orders[start : start + BATCH] for start in range(0, len(intake.orders), BATCH)]
    for number, batch in enumerate(batches, start=1):
        await runner.step(f"post-batch-{number}", post_batch, folder, batch, rates)
    invoices = await runner.step("write-invoices", write_invoices, folder)
    summary = await runner.step("write-summary", write_summary, folder, len(intake.rejects), invoices)
    await runner.step("mail-summary", mail_summary, folder, summary)
    return summary


async def fetch_rates(day: date) -> dict[str, Decimal]:
    """Ask the bank what a euro buys. Asked again it might answer differently: the run keeps its first answer."""
    return {"EUR": Decimal(1), "GBP": Decimal("0.8642"), "SEK": Decimal("10.8455"), "USD": Decimal("1.0815")}


def read_orders(path: Path, rates: dict[str, Decimal]) -> Intake:
    """Sort the shop's export into orders and rows for a person to look at."""
    orders: dict[str, Order] = {}
    rejects: list[Reject] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        next(rows)  # the header
        for fields in filter(None, rows):
            try:
                order = parse_order(fields)
                if order.currency not in rates:
                    raise ValueError(f"no rate for {order.currency}")
                if order.id in orders:
                    raise ValueError(f"order {order.id} is on an earlier line")
                orders[order.id] = order
            except ValueError as error:
                rejects.append(Reject(rows.line_num, str(error), fields))
    return Intake(list(orders.values()), rejects)


def parse_order(fields: list[str]) -> Order:
    if len(fields) != 6:
        raise ValueError(f"{len(fields)} columns instead of 6")
    id_, placed, customer, name, currency, amount = (field.strip() for field in fields)
    if not re.fullmatch(r"C-\d+", customer):
        raise ValueError(f"{customer!r} is no customer number")
    return Order(id_, datetime.fromisoformat(placed), customer, name, currency.upper(), parse_amount(amount))


def parse_amount(text: str) -> Decimal:
    """Read `1249.00`, `1.249,00` and `1,249.00`: the shop always writes two decimals."""
    match = re.fullmatch(r"(-?\d[\d.,]*)[.,](\d\d)", text)
    if match is None:
        raise ValueError(f"{text!r} is no amount with two decimals")
    return Decimal(f"{re.sub('[.,]', '', match[1])}.{match[2]}")


def report_rejects(folder: Path, rejects: list[Reject]) -> None:
    lines = [f"line {reject.line}: {reject.reason}: {reject.fields}\n" for reject in rejects]
    replace_file(folder / "rejects.txt", "".join(lines))


def post_batch(folder: Path, orders: list[Order], rates: dict[str, Decimal]) -> None:
    """Post a batch in one transaction. A repetition brings the same keys: it is counted, and changes nothing else."""
    step = current_step()
    rows = []
    for order in orders:
        cents = round(order.amount / rates[order.currency] * 100)
        rows.append((f"{step.idempotency_key}:{order.id}", step.step_id, order.id, order.customer, order.name, cents))
    with ledger(folder) as db:
        db.executemany(
            "INSERT INTO postings (key, step, order_id, customer, name, cents) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET asked = asked + 1",
            rows,
        )


def write_invoices(folder: Path) -> int:
    """Write one invoice per customer. A repetition writes the same files again: no invoice gets a second number."""
    with ledger(folder) as db:
        rows = db.execute("SELECT customer, name, order_id, cents FROM postings ORDER BY customer, order_id").fetchall()
    count = 0
    for customer, group in groupby(rows, key=lambda row: row[0]):
        lines = list(group)
        total = sum(cents for *_, cents in lines)
        text = [f"Invoice {DAY}/{customer}", lines[0][1], ""]
        text += [f"{order_id:<12}{cents / 100:>12,.2f}" for *_, order_id, cents in lines]
        text += ["", f"{'Total EUR':<12}{total / 100:>12,.2f}", ""]
        replace_file(folder / "invoices" / f"{DAY}-{customer}.txt", "\n".join(text))
        count += 1
    return count


def write_summary(folder: Path, rejected: int, invoices: int) -> Summary:
    with ledger(folder) as db:
        orders, refunds, cents = db.execute("SELECT count(*), sum(cents < 0), sum(cents) FROM postings").fetchone()
    summary = Summary(DAY, orders - refunds, refunds, rejected, invoices, Decimal(cents) / 100)
    replace_file(folder / "summary.json", json.dumps(asdict(summary), default=str, indent=2) + "\n")
    return summary


def mail_summary(folder: Path, summary: Summary) -> None:
    """Hand the summary to the mail service, which keeps one message per key."""
    text = f"{summary.orders} orders, {summary.refunds} refunds, {summary.rejected} rejected: EUR {summary.total:,}"
    with ledger(folder) as db:
        db.execute(
            "INSERT INTO mail (key, recipient, text) VALUES (?, 'accounts@example.com', ?)"
            " ON CONFLICT (key) DO UPDATE SET asked = asked + 1",
            (current_step().idempotency_key, text),
        )


@contextmanager
def ledger(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the ledger for one transaction, which is committed whole or not at all."""
    with closing(sqlite3.connect(folder / "ledger.db")) as db, db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS postings (key TEXT PRIMARY KEY, step TEXT, order_id TEXT, customer TEXT, name TEXT,"
            " cents INTEGER, asked INTEGER DEFAULT 1)"
        )
        db.execute("CREATE TABLE IF NOT EXISTS mail (key TEXT PRIMARY KEY, recipient TEXT, text TEXT, asked INTEGER DEFAULT 1)")
        yield db


def replace_file(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the process dies."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


if __name__ == "__main__":
    from kill_and_resume import main

    main(settle, RUN_ID)
