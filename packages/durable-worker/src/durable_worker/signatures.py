"""Checking that a delivery comes from who it says it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec


class Delivery(msgspec.Struct, frozen=True):
    """A request as it came in, before anything of it was parsed."""

    body: bytes
    headers: Mapping[str, str]
    """By their names in lower case."""


Verify = Callable[[Delivery], str | None]
"""Returns the delivery's id, or None where the scheme has none in its headers; whatever it raises is a 401."""


def github(secret: str) -> Verify:
    """Not built yet."""
    raise NotImplementedError


def stripe(secret: str, *, tolerance: float = 300) -> Verify:
    """Not built yet."""
    raise NotImplementedError


def standard(secret: str) -> Verify:
    """Not built yet."""
    raise NotImplementedError
