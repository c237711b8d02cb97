"""The shop's HTTP face: `uvicorn orders_service.web:app`. It asks for runs and looks at them, and drives none."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, PositiveInt

from durable_core import NotFound, Refused, StepDrift, open_store
from durable_core.control import approve, pending, reject, status
from durable_worker import Worker, standard

from .flows import STORE_URL, order

store = open_store(STORE_URL)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with store:
        yield


app = FastAPI(title="Orders", lifespan=lifespan)


class Order(BaseModel):
    item: str
    cents: PositiveInt


class Decision(BaseModel):
    approved: bool
    by: str  # take it from your own sign-in: durable records who decided, and checks nothing
    reason: str | None = None


@app.put("/orders/{id}", status_code=202)
async def place(id: str, wanted: Order) -> dict[str, str]:
    try:
        await order.start(store, f"order-{id}", id=id, item=wanted.item, cents=wanted.cents)
    except StepDrift:
        raise HTTPException(409, "there is another order of this id") from None
    return {"run_id": f"order-{id}"}


@app.get("/orders/{id}")
async def look(id: str) -> dict[str, Any]:
    try:
        run = await status(store, f"order-{id}")
    except NotFound:
        raise HTTPException(404, "there is no such order") from None
    return {"status": run.status, "waiting_for": run.waiting_for, "result": run.result}


@app.get("/approvals")
async def approvals() -> list[Any]:
    return [waiting.notes["show"] async for waiting in pending(store, "order-")]


@app.post("/orders/{id}/decision")
async def decide(id: str, decision: Decision) -> dict[str, bool]:
    vote = approve if decision.approved else reject
    try:
        await vote(store, f"order-{id}", "approve", by=decision.by, reason=decision.reason)
    except NotFound:
        raise HTTPException(404, "there is nothing to decide") from None
    except Refused as error:  # decided otherwise, or too late
        raise HTTPException(409, str(error)) from None
    return {"approved": decision.approved}


# The warehouse signs its calls by Standard Webhooks. This worker is never started: it takes deliveries, and no more.
hooks = Worker(store, [order])
hooks.webhook(
    "/warehouse",
    send_to=lambda payload: (f"order-{payload['order']}", "on-its-way"),
    input=lambda payload: payload["parcel"],
    verify=standard(os.environ.get("WAREHOUSE_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
)
app.mount("/hooks", hooks.app)
