"""Settle a day's orders without asyncio: `settle_orders.py` with `durable_core.sync`, for programs that have no event loop.

`python examples/settle_orders_sync.py` kills it, and starts it again, as it does the other one. The steps are the same functions.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from settle_orders import (
    BATCH,
    DAY,
    ORDERS,
    RUN_ID,
    Summary,
    fetch_rates,
    mail_summary,
    post_batch,
    read_orders,
    report_rejects,
    write_invoices,
    write_summary,
)

import durable_core
from durable_core import StepEvent, exponential
from durable_core.sync import Runner, Store


def settle(store: Store | durable_core.Store, folder: Path, on_event: Callable[[StepEvent], None] | None = None) -> Summary:
    """The flow is plain Python, and so is each step: a function that is called in this thread."""
    with Runner(
        store,
        RUN_ID,
        max_attempts=3,
        retry_delay=exponential(0.1),
        retry_on=(OSError, sqlite3.OperationalError),
        lock_wait=10,
        on_event=on_event,
    ) as runner:
        rates = runner.step("fetch-rates", fetch_rates, DAY)
        intake = runner.step("read-orders", read_orders, ORDERS, rates)
        runner.step("report-rejects", report_rejects, folder, intake.rejects)
        batches = [intake.orders[start : start + BATCH] for start in range(0, len(intake.orders), BATCH)]
        for number, batch in enumerate(batches, start=1):
            runner.step(f"post-batch-{number}", post_batch, folder, batch, rates)
        invoices = runner.step("write-invoices", write_invoices, folder)
        summary = runner.step("write-summary", write_summary, folder, len(intake.rejects), invoices)
        runner.step("mail-summary", mail_summary, folder, summary)
        return summary


if __name__ == "__main__":
    from kill_and_resume import main

    main(settle, RUN_ID)
