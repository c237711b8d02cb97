"""What becomes of an order, and what happens each night. The web process asks for these; the worker drives them."""

import os
from datetime import timedelta
from functools import partial

from durable_core import Runner, exponential, flow

from . import shop

STORE_URL = os.environ.get("DURABLE_STORE", "sqlite:./orders.db")
APPROVE_ABOVE = 500_00  # cents


@flow(max_attempts=5, retry_delay=exponential(0.5, limit=60))
async def order(runner: Runner, id: str, item: str, cents: int) -> str:
    await runner.step("reserve", shop.reserve, id, item)
    if cents > APPROVE_ABOVE:
        shown = {"order": id, "item": item, "cents": cents}
        decision = await runner.approval("approve", shown, timeout=timedelta(days=3), on_timeout="reject")
        if not decision.approved:
            await runner.step("release", shop.release, id)
            return f"rejected by {decision.by}"
    # Twice would be worse than late: after a crash the bank is asked first.
    await runner.step("charge", shop.charge, id, cents, at_most_once=True, recover=partial(shop.find_charge, id))
    await runner.step("ship", shop.ship, id)
    parcel = await runner.event("on-its-way", returns=str, timeout=timedelta(days=7))
    return f"parcel {parcel}"


@flow(max_attempts=5, retry_delay=exponential(0.5, limit=60))
async def settle(runner: Runner, day: str) -> int:
    return await runner.step("book", shop.book, day)
