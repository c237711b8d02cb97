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
    """Make the store for `url`, such as `sqlite:./runs.db` or `s3://bucket/prefix`. It connects when it is first used.

    Without an argument, the URL is that of the environment variable `DURABLE_STORE`. Use the store in a context:
    `async with open_store(url) as store:`. Installed distributions register their schemes in the entry-point group
    `durable_core.stores`. Raises `StoreError` if no installed distribution or more than one serves the scheme, and for an
    unknown option. Errors from importing the store's module are not caught.
    """
    if url is None and not (url := os.environ.get("DURABLE_STORE")):
        raise StoreError("no store is given: pass open_store a URL such as 'sqlite:./runs.db', or set DURABLE_STORE to one")
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
