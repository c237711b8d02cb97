"""Links for e-mails and chats, by which one person answers one question once."""

from __future__ import annotations

__all__ = ["decision_link"]

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from durable_core.record import StepRecord

from ._asked import asked_by
from ._tokens import Tokens, check_secret


def decision_link(url: str, approval: StepRecord, *, by: str, secret: str, lasts: timedelta = timedelta(days=3)) -> str:
    """Return a link by which `by` answers an approval once, without signing in.

    `url` is where people find the page, such as `https://ops.example.com/durable`, and `secret` the one that `app` has.
    `approval` is its newest entry, as `control.pending` and `notify=` give it. The link holds for what is shown, until it was
    used, the person has answered in another way, or `lasts` is over. Opening it shows the question and decides nothing.

    Whoever holds the link can answer as `by`, so send it to that person alone. Raises `ValueError` for a URL that is none, for
    an entry that is no approval which waits, and for somebody who may not decide it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"url must be where the page is found, such as 'https://ops.example.com/durable', not {url!r}")
    asked = asked_by(approval)
    if not asked.is_open:
        raise ValueError(
            f"{approval.step_id!r} of run {approval.run_id!r} is no approval that waits; make the link before it is decided"
        )
    if not by or by.startswith("$") or not asked.may_decide(by):
        raise ValueError(f"{by!r} may not decide {approval.step_id!r} of run {approval.run_id!r}; name one of its approvers")
    if lasts <= timedelta(0):
        raise ValueError(f"lasts must be longer than no time, not {lasts!r}")
    expires = int((datetime.now(UTC) + lasts).timestamp())
    token = Tokens(check_secret(secret)).for_link(
        {"run": asked.run_id, "step": asked.step_id, "by": by, "mark": asked.mark, "expires": expires}
    )
    return f"{url.rstrip('/')}/decide?link={token}"
