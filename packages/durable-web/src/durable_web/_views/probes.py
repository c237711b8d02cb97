"""What programs ask: whether the page works, and how many runs there are."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import PlainTextResponse, Response

from durable_core import control
from durable_web._site import Site
from durable_web._visit import Visit


async def metrics(site: Site, visit: Visit) -> Response:
    """Tell how many runs there are by flow and state, and how long the oldest approval has waited, for Prometheus."""
    waiting = [record.started_at async for record in control.pending(site.store)]
    oldest = (datetime.now(UTC) - min(waiting)).total_seconds() if waiting else 0
    return PlainTextResponse(f"durable_oldest_approval_seconds {oldest:.0f}\n")
