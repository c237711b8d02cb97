"""One question, opened by a link of its own."""

from __future__ import annotations

from starlette.responses import Response

from durable_web._asked import Asked
from durable_web._site import Site
from durable_web._visit import Visit


def view(site: Site, visit: Visit, asked: Asked, link: str, done: str = "") -> Response:
    """Show what is asked, and the form that answers it; once it is `done` only what was said."""
    return site.page(visit, "decide.html", asked=asked, link=link, done=done, showing=site.showing)
