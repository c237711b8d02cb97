"""Finds settings of the server that may lose runs."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError


class DataLossWarning(UserWarning):
    """The server's settings may lose runs: it writes no appendonly file, or may evict keys."""


async def loss(client: Any, *, expires: bool) -> str | None:
    """Return how the server's settings may lose runs, or None if they can't, or if the server doesn't show them.

    `expires` says whether runs have a ttl: then the `volatile-*` policies may evict them too.
    """
    try:
        found = await client.config_get("save", "appendonly", "maxmemory-policy")
    except ResponseError:  # hosted servers forbid or rename CONFIG
        return None
    settings = {name: str(value) for name, value in found.items()}
    dangers = []
    if settings.get("appendonly") == "no":
        if settings.get("save"):
            dangers.append("keeps snapshots only, so a crash loses everything since the last one: set appendonly to yes")
        else:
            dangers.append("keeps nothing on disk, so a restart loses every run: set appendonly to yes")
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction" and (expires or not policy.startswith("volatile-")):
        dangers.append(f"may evict runs when it is full (maxmemory-policy {policy}): set it to noeviction")
    return f"this Redis server {'; it '.join(dangers)}" if dangers else None
