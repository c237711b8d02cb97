"""Links for e-mails and chats, with which one person answers one question once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import msgspec
from starlette.exceptions import HTTPException

from durable_core.record import StepRecord

from ._asked import asked_by
from ._tokens import Tokens, check_secret


class Link(msgspec.Struct, frozen=True):
    """The content of a link."""

    run: str
    step: str
    by: str
    mark: str
    """Identifies the question that the link answers."""
    expires: int
    """The time of expiry, in seconds since 1970."""


def decision_link(url: str, approval: StepRecord, *, by: str, secret: str, lasts: timedelta = timedelta(days=3)) -> str:
    """Return a link with which `by` answers an approval once, without signing in if `access=` allows that.

    `url` is the address of the page, such as `https://ops.example.com/durable`, and `secret` is the secret of `app`. `approval`
    is the approval's newest entry, as `control.pending` and `notify=` give it. The link is valid only for what was shown, until
    it was used, the person has answered in another way, or `lasts` is over. Opening it shows the question and decides nothing.

    Whoever has the link can answer as `by`, so send it only to that person. Raises `ValueError` if `url` is not a URL, if the
    entry is not a pending approval, and if `by` may not decide it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"url must be the page's address, such as 'https://ops.example.com/durable', not {url!r}")
    if not isinstance(approval, StepRecord):
        raise TypeError(f"approval must be an entry, as control.pending and notify= give it, not a {type(approval).__name__}")
    if not isinstance(lasts, timedelta):
        raise TypeError(f"lasts must be a timedelta, not {lasts!r}")
    asked = asked_by(approval)
    what = f"{approval.step_id!r} of run {approval.run_id!r}"
    if not asked.is_open:
        raise ValueError(f"{what} is not a pending approval; make the link before it is decided")
    if not by or not by.isprintable() or by.startswith("$") or not asked.may_decide(by):
        raise ValueError(f"{by!r} may not decide {what}; name one of its approvers")
    if lasts <= timedelta(0):
        raise ValueError(f"lasts must be longer than zero, not {lasts!r}")
    expires = int((datetime.now(UTC) + lasts).timestamp())
    tokens = Tokens(check_secret(secret))
    link = Link(asked.run_id, asked.step_id, by, tokens.mark(asked.digest), expires)
    return f"{url.rstrip('/')}/decide?link={tokens.for_link(msgspec.to_builtins(link))}"


def link_of(tokens: Tokens, token: str) -> Link:
    """Read a link. Raises `HTTPException` if it was changed or has expired."""
    try:
        link = msgspec.convert(tokens.link_of(token), Link)
    except msgspec.ValidationError:
        why = "this link was changed, or signed with another secret than the page has; nothing was done"
        raise HTTPException(403, why) from None
    if datetime.now(UTC).timestamp() >= link.expires:
        raise HTTPException(410, "this link has expired; nothing was done")
    return link
