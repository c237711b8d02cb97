"""The world outside: a warehouse, a bank and a ledger. Here all three are one table, in which you can count what they did."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from durable_core import Recovered, current_step

PATH = os.environ.get("SHOP_DB", "shop.db")
BANK_SECONDS = float(os.environ.get("BANK_SECONDS", "0.3"))


def reserve(order: str, item: str) -> None:
    """The warehouse knows orders by their keys: asked again, it changes nothing."""
    _note("reserved", order, key=current_step().idempotency_key, text=item)


def release(order: str) -> None:
    _note("released", order, key=current_step().idempotency_key)


def charge(order: str, cents: int) -> str:
    """The bank knows no keys: asked twice, it charges twice. It also takes its time to answer."""
    _note("charged", order, cents=cents)
    time.sleep(BANK_SECONDS)
    return f"charge-{order}"


def find_charge(order: str) -> Recovered[str] | None:
    """Ask the bank what came of a charge whose answer was lost."""
    with _table() as table:
        found = table.execute("select 1 from effects where what = 'charged' and about = ?", (order,)).fetchone()
    return Recovered(f"charge-{order}") if found else None


def ship(order: str) -> None:
    """Ask the warehouse to send it; the warehouse calls back when the parcel is on its way."""
    _note("shipped", order, key=current_step().idempotency_key)


def book(day: str) -> int:
    """Book what was charged on a day, in UTC, and return the sum in cents."""
    with _table() as table:
        charged = table.execute("select sum(cents) from effects where what = 'charged' and date(at) = ?", (day,)).fetchone()
    cents = int(charged[0] or 0)
    _note("booked", day, key=current_step().idempotency_key, cents=cents)
    return cents


def _note(what: str, about: str, *, key: str | None = None, cents: int | None = None, text: str | None = None) -> None:
    row = (key, what, about, cents, text, datetime.now(UTC).isoformat())
    with _table() as table:
        table.execute("insert into effects values (?, ?, ?, ?, ?, ?) on conflict (key) do nothing", row)


@contextmanager
def _table() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(PATH, timeout=30)) as table, table:
        table.execute(
            "create table if not exists effects"
            " (key text unique, what text, about text, cents integer, text text, at text not null)"
        )
        yield table
