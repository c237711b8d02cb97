"""Approving and rejecting, in the inbox and with a link."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from durable_core import control
from durable_core.errors import NotFound
from durable_core.record import StepRecord

from ._acting import reason_of, value_of
from ._asked import Asked, asked_by
from ._links import Link, link_of
from ._site import SAID, Site
from ._visit import Visit

_SAID: Final = {"approve": "approved", "reject": "rejected"}
"""The answers and their labels."""
_USED: Final = "this link was used: it answers once"


async def decide(site: Site, visit: Visit) -> Response:
    """Record the answer of the signed-in user."""
    asked = await question(site, visit.id("run"), visit.id("step"))
    await record_answer(site, visit, asked, visit.user.name)
    return RedirectResponse(visit.url(said=_SAID[answer_of(visit)]), 303)


async def show_link(site: Site, visit: Visit) -> Response:
    """Show only the question of a link."""
    token = visit.asked("link")
    asked = await _asked_by_link(site, link_of(site.tokens, token))
    return site.page(visit, "decide.html", asked=asked, link=token, done=None)


async def answer_link(site: Site, visit: Visit) -> Response:
    """Record the answer of the person with the link, once."""
    link = link_of(site.tokens, visit.form.text("link"))
    asked = await _asked_by_link(site, link)
    if visit.form.text("mark") != link.mark:
        raise HTTPException(409, "this form was made for another question; nothing was done")
    said = {"by": link.by, "answer": answer_of(visit), "reason": reason_of(visit), "value": _changed(visit, asked)}
    # Of its content, because a signature can be written in several ways; and of all links of one person to one question.
    used = hashlib.sha256(f"{link.mark} {link.by}".encode()).hexdigest()[:32]
    claim = StepRecord(run_id=link.run, step_id=f"$link/{used}", note=said)
    holder = await site.store.append(claim)
    if holder.id != claim.id and holder.note != said:  # after a crash between the two, the same answer may be repeated
        raise HTTPException(410, f"{_USED}; nothing was done")
    await record_answer(site, visit, asked, link.by)
    asked = await question(site, link.run, link.step)
    return site.page(visit, "decide.html", asked=asked, link="", done=SAID[_SAID[said["answer"]]])


async def _asked_by_link(site: Site, link: Link) -> Asked:
    """Return the question of the link. Raises `HTTPException` if it can no longer be answered."""
    try:
        asked = await question(site, link.run, link.step)
    except NotFound:
        raise HTTPException(410, "the run that asked is gone; nothing was done") from None
    if asked.has_voted(link.by):
        raise HTTPException(410, f"{_USED}, or {link.by} has answered in another way; nothing was done")
    if site.tokens.mark(asked.digest) != link.mark:
        raise HTTPException(410, "what is asked has changed since this link was made; nothing was done")
    if not asked.is_open:
        raise HTTPException(410, "this was decided before, or its time is over; nothing was done")
    return asked


async def record_answer(site: Site, visit: Visit, asked: Asked, by: str) -> StepRecord:
    """Append the answer of the form, as `by`. It is valid only for what the form showed."""
    answer, reason = answer_of(visit), reason_of(visit)
    value = _changed(visit, asked)
    if visit.form.text("mark") != site.tokens.mark(asked.digest):
        raise HTTPException(409, "what is asked has changed since this page was made: look at it again; nothing was done")
    if answer == "approve":
        return await control.approve(site.store, asked.run_id, asked.step_id, by=by, reason=reason, value=value)
    return await control.reject(site.store, asked.run_id, asked.step_id, by=by, reason=reason)


def _changed(visit: Visit, asked: Asked) -> Any:
    """Return the person's value; None if nobody changed the flow's value."""
    if not asked.takes_value:
        return None
    value = value_of(visit, "value")
    several = (msgspec.json.encode(each, order="deterministic") for each in (asked.show["edit"], asked.proposed, value))
    return None if len({*several}) == 1 else value


async def question(site: Site, run_id: str, step_id: str) -> Asked:
    """Return the question. Raises `NotFound` if there is none."""
    record = await site.store.get(run_id, step_id)
    if record is None or record.kind != "approval":
        raise NotFound(f"there is no approval {step_id!r} in run {run_id!r}")
    return asked_by(record)


def answer_of(visit: Visit) -> str:
    """Return `approve` or `reject`. Raises `HTTPException` for anything else."""
    answer = visit.form.text("answer")
    if answer not in _SAID:
        raise HTTPException(400, "say whether you approve or reject; nothing was done")
    return answer
