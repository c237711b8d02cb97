"""Approving and rejecting, from the inbox and by a link."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from durable_core import control
from durable_core.errors import NotFound
from durable_core.record import StepRecord

from ._acting import reason_of, value_of
from ._asked import Asked, asked_by
from ._site import Site
from ._visit import Visit

ANSWERS = ("approve", "reject")


async def decide(site: Site, visit: Visit) -> Response:
    """Record the answer of who is signed in."""
    asked = await question(site, visit.id("run"), visit.id("step"))
    await record_answer(site, visit, asked, visit.user.name)
    return RedirectResponse(visit.url(said=f"{answer_of(visit)}d" if answer_of(visit) == "approve" else "rejected"), 303)


async def record_answer(site: Site, visit: Visit, asked: Asked, by: str) -> StepRecord:
    """Append what the form answers, as `by`; it holds for what the form had shown alone."""
    answer, reason = answer_of(visit), reason_of(visit)
    value = value_of(visit, "value") if asked.takes_value else None
    if visit.form.text("mark") != asked.mark:
        raise HTTPException(409, "what is asked has changed since this page was made: look at it again; nothing was done")
    if answer == "approve":
        return await control.approve(site.store, asked.run_id, asked.step_id, by=by, reason=reason, value=value)
    return await control.reject(site.store, asked.run_id, asked.step_id, by=by, reason=reason)


async def question(site: Site, run_id: str, step_id: str) -> Asked:
    """Return what is asked. Raises `NotFound` where nothing is."""
    record = await site.store.get(run_id, step_id)
    if record is None or record.kind != "approval":
        raise NotFound(f"there is no approval {step_id!r} in run {run_id!r}")
    return asked_by(record)


def answer_of(visit: Visit) -> str:
    """Return `approve` or `reject`. Raises `HTTPException` for anything else."""
    answer = visit.form.text("answer")
    if answer not in ANSWERS:
        raise HTTPException(400, "say whether you approve or reject; nothing was done")
    return answer
