"""Live pages: sends a part of a page whenever it has changed. The browser asks for a new stream from time to time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from durable_core import MemoryStore
from durable_core.errors import CorruptLog, NotFound, StoreError
from durable_core.store import Store, polling_of
from durable_web._site import Site
from durable_web._visit import Visit

Looks = Callable[[], AsyncGenerator[dict[str, Any], None]]
"""Yields the content of the part again and again. Ends when nothing will change any more."""

_LASTS: Final = 30.0
"""Seconds that a stream stays open. Then the browser asks for another one, and its user is checked again."""
_SLOW: Final = 28.0
"""Seconds without an answer after which the page calls the store slow. On S3, two looks are twenty seconds apart."""
_AGAIN: Final = 2.0
_LOOK: Final = 2.0
_LONGEST: Final = 10.0
_ENDED: Final = "event: ended\ndata: \n\n"
"""Tells the browser not to ask again."""
_LINE_END: Final = re.compile("\r\n|\r|\n")
_HEADERS: Final = {"X-Accel-Buffering": "no"}


async def rounds(store: Store) -> AsyncGenerator[None, None]:
    """Yield at once, and again when it is time to look: after two seconds, on S3 twenty, or longer if looking takes long."""
    loop, polling = asyncio.get_running_loop(), polling_of(store)
    # Runs needn't poll a MemoryStore, so its `poll_seconds` is long. A page must look for itself.
    pause = _LOOK if polling is None or isinstance(store, MemoryStore) else max(_LOOK, polling.poll_seconds)
    while True:
        began = loop.time()
        yield
        await asyncio.sleep(max(pause, min(4 * (loop.time() - began), _LONGEST)))


def stream(site: Site, visit: Visit, template: str, looks: Looks) -> Response:
    """Return the stream of a part of a page, as server-sent events."""
    return StreamingResponse(_events(site, visit, template, looks), media_type="text/event-stream", headers=_HEADERS)


async def _events(site: Site, visit: Visit, template: str, looks: Looks) -> AsyncIterator[str]:
    deadline = asyncio.get_running_loop().time() + _LASTS
    sent, trouble = "", ""
    while True:
        try:
            async with aclosing(looks()) as found:
                while True:
                    if (left := deadline - asyncio.get_running_loop().time()) <= 0:
                        return
                    async with asyncio.timeout(min(left, _SLOW)):
                        context = await anext(found)
                    part = site.part(visit, template, **context)
                    is_same = part == sent and not trouble
                    yield ": as it was\n\n" if is_same else _event(part + site.part(visit, "live/trouble.html"))
                    sent, trouble = part, ""
        except StopAsyncIteration:
            yield _ENDED
            return
        except (NotFound, CorruptLog) as error:  # looking again would not help
            yield _event(site.part(visit, "live/trouble.html", trouble=site.showing.text("error", str(error)))) + _ENDED
            return
        except (StoreError, OSError) as error:  # a TimeoutError is one
            if asyncio.get_running_loop().time() >= deadline:
                return
            trouble = f"The store is away: {site.showing.text('error', str(error))}" if str(error) else "The store is slow."
            yield _event(site.part(visit, "live/trouble.html", trouble=f"{trouble} This page is as it was."))
        await asyncio.sleep(_AGAIN)


def _event(html: str) -> str:
    """Return a server-sent event with a `data:` for each line. Splits lines as browsers do, so not at U+2028 and the like."""
    return "".join(f"data: {line}\n" for line in _LINE_END.split(html)) + "\n"
