"""What the server's own settings mean for runs."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError


class DataLossWarning(UserWarning):
    """The server is set up in a way that loses runs: it keeps nothing on disk, or may evict keys."""


async def loss(client: Any, *, expires: bool) -> str | None:
    """Say how the server's settings may lose runs; None where they don't, or where the server doesn't tell.

    `expires` says whether runs have a ttl, which makes them prey of the `volatile-*` policies too.
    """
    try:
        settings = {
            name: str(value)
            for setting in ("save", "appendonly", "maxmemory-policy")
            for name, value in (await client.config_get(setting)).items()
        }
    except ResponseError:  # Forbidden, or renamed away, as hosted servers do.
        return None
    found = []
    if settings.get("save") == "" and settings.get("appendonly") == "no":
        found.append("keeps nothing on disk, so a restart loses every run: set appendonly to yes")
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction" and (expires or not policy.startswith("volatile-")):
        found.append(f"may evict runs when it is full (maxmemory-policy {policy}): set it to noeviction")
    return f"this Redis server {'; it '.join(found)}" if found else None
