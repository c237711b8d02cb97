"""The process that drives orders and settles each night: `python -m orders_service.worker`, any number of times."""

import asyncio
import logging
from datetime import datetime, timedelta

from durable_core import Clock, Store, open_store
from durable_core.control import RunStatus
from durable_worker import Worker

from .flows import STORE_URL, order, settle


def make_worker(store: Store, clock: Clock | None = None) -> Worker:
    worker = Worker(store, [order, settle], clock=clock)
    worker.cron("0 2 * * *", settle, timezone="Europe/Berlin", catch_up="last", input=day_before)
    worker.on_end(tell)
    return worker


def day_before(tick: datetime) -> dict[str, str]:
    return {"day": f"{tick - timedelta(days=1):%Y-%m-%d}"}


def tell(run: RunStatus) -> None:
    print(run.run_id, run.status, run.error.message if run.error else run.result, flush=True)


async def main() -> None:
    async with open_store(STORE_URL) as store:
        await make_worker(store).serve()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(main())
