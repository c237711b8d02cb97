"""State shared by all views: the store, the templates, and the application's functions for visitors."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from durable_core.store import Store

from ._counting import Counting
from ._local import Local
from ._origin import base_of, url_under
from ._showing import Showing
from ._text import FILTERS, visible
from ._tokens import Tokens
from ._users import Users
from ._visit import Visit

SAID: Final = {
    "approved": "Your approval is recorded.",
    "rejected": "Your rejection is recorded.",
    "retried": "The retry is recorded: a worker, or your program, takes it from here.",
    "cancelled": "The cancellation is recorded: the run stops as soon as it can.",
    "forked": "This is the new run: a worker, or your program, takes it from here.",
    "resolved": "The outcome is recorded.",
    "sent": "The value is recorded.",
    "cleaned": "The run is deleted.",
}
"""The messages at the top of a page after an action. The URL chooses one, but never contains the text."""
_HEADINGS: Final = {
    400: "Please check what you entered",
    401: "Sign in",
    403: "Not allowed",
    404: "Not found",
    409: "Not done",
    410: "This link answers nothing any more",
    503: "The store does not answer",
}
_OTHER: Final = "That did not work"

# Everything that a template prints is escaped and made visible. `exact` is for fields that are posted back.
_TEMPLATES: Final = Environment(
    loader=PackageLoader("durable_web"), autoescape=True, undefined=StrictUndefined, finalize=visible, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_TEMPLATES.filters.update(FILTERS)
_TEMPLATES.globals["said_of"] = SAID.get


class Site:
    """One page, made by `app`."""

    def __init__(self, store: Store, title: str, showing: Showing, tokens: Tokens, people: Users | Local) -> None:
        self.store: Final = store
        self.counts: Final = Counting(store)
        self.title: Final = title
        self.showing: Final = showing
        self.tokens: Final = tokens
        self.people: Final = people
        self._shared: Final = {"showing": showing, "mark_of": lambda asked: tokens.mark(asked.digest)}

    def page(self, visit: Visit, template: str, status: int = 200, **context: Any) -> Response:
        """Return a page from a template."""
        return self._answer(template, status, visit=visit, url=visit.url, **context)

    def part(self, visit: Visit, template: str, **context: Any) -> str:
        """Return a part of a page from a template."""
        return _TEMPLATES.get_template(template).render({"visit": visit, "url": visit.url, **self._shared, **context})

    def refusal(self, request: Request, status: int, why: str, visit: Visit | None = None) -> Response:
        """Return a page that says why nothing is shown or nothing was done."""
        heading, url = _HEADINGS.get(status, _OTHER), partial(url_under, base_of(request))
        return self._answer("refused.html", status, visit=visit, url=url, heading=heading, why=why)

    def refused(self, request: Request, error: HTTPException, visit: Visit | None = None) -> Response:
        """Return a page for an error with its own status and headers, such as a redirect to a sign-in page."""
        answer = self.refusal(request, error.status_code, error.detail, visit)
        answer.headers.update(error.headers or {})
        return answer

    def _answer(self, template: str, status: int, **context: Any) -> Response:
        html = _TEMPLATES.get_template(template).render({"title": self.title, "here": template, **self._shared, **context})
        return HTMLResponse(html, status, {"Retry-After": "5"} if status == 503 else None)
