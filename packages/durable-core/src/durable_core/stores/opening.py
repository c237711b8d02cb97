"""From a URL to a store, through entry points."""

from __future__ import annotations

import os
from typing import Final, cast

from durable_core.errors import StoreError
from durable_core.store import OpenableStore

from .urls import StoreURL

GROUP: Final = "durable_core.stores"
# Our own family only: to name a distribution that doesn't exist is to invite squatters.
_FAMILY: Final = {
    "file": "durable-file",
    "sqlite": "durable-sqlite",
    "redis": "durable-redis",
    "rediss": "durable-redis",
    "postgres": "durable-postgres",
    "postgresql": "durable-postgres",
    "s3": "durable-s3",
    "unix": "durable-redis",
}


def open_store(url: str | None = None) -> OpenableStore:
    """Make the store that `url` names, such as `sqlite:./runs.db` or `s3://bucket/prefix`; it connects when first used.

    Without an argument the environment variable `DURABLE_STORE` names it. Use it as `async with open_store(url) as store:`.
    The installed distributions say which class serves a scheme, through the entry-point group `durable_core.stores`.
    Raises `StoreError` for a scheme that nobody or more than one distribution serves, or an option that the store doesn't know.
    An error raised by importing the store's own module passes through.
    """
    if url is None and not (url := os.environ.get("DURABLE_STORE")):
        raise StoreError("no store is named: give open_store a URL such as 'sqlite:./runs.db', or set DURABLE_STORE to one")
    from importlib.metadata import entry_points  # a third of what importing the library would take

    points = entry_points(group=GROUP)
    if isinstance(url, str) and url.lower() in points.names:
        raise StoreError(f"{url!r} lacks a colon: a URL of this store begins with '{url.lower()}:'")
    parsed = StoreURL(url)
    serving = [point for point in points if point.name == parsed.scheme]
    found = {point.dist.name if point.dist else point.value: point for point in serving}
    if not found:
        installed = ", ".join(sorted({point.name for point in points})) or "none"
        package = _FAMILY.get(parsed.scheme)
        advice = f" To use it: pip install {package}" if package else ""
        # Without the URL: in `user:secret@host` the scheme was forgotten, and the rest is a secret.
        raise StoreError(f"no store is installed for the scheme {parsed.scheme!r}; installed: {installed}.{advice}")
    if len(found) > 1:
        raise StoreError(
            f"more than one distribution serves {parsed.scheme!r}: {' and '.join(sorted(found))}; uninstall all but one"
        )
    (point,) = found.values()
    return cast("type[OpenableStore]", point.load()).from_url(url)
