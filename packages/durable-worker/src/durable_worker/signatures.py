"""Verifying the sender of a delivery."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final

import msgspec
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from durable_core.errors import DurableError
from durable_core.options import duration


class Delivery(msgspec.Struct, frozen=True):
    """A request as it arrived, before parsing."""

    body: bytes
    headers: Mapping[str, str]
    """The headers by their names in lower case. The values of a repeated header are joined by `, `."""


class BadSignature(DurableError):
    """The signature of a delivery is wrong or too old. The message contains nothing of the delivery."""


Verify = Callable[[Delivery], Awaitable[str | None] | str | None]
"""Returns the delivery's id, or None if it has none. Raises for a delivery that can't be trusted."""


def github(secret: str) -> Callable[[Delivery], str | None]:
    """Return a function that verifies GitHub's deliveries: `X-Hub-Signature-256` signs the body; the id is `X-GitHub-Delivery`.

    GitHub signs neither a time nor the id. Anybody who has seen a delivery can repeat it at any time, under another id. If that
    matters, give the webhook a `run_id=` that depends only on the payload.
    """
    key = _text("github", secret).encode()

    def verify(delivery: Delivery) -> str | None:
        given = _header(delivery, "X-Hub-Signature-256")
        if not _is_same(given, f"sha256={_hex(key, delivery.body)}"):
            raise BadSignature("X-Hub-Signature-256 doesn't match the body and the secret")
        return delivery.headers.get("x-github-delivery")

    return verify


def stripe(secret: str, *, tolerance: float | timedelta = 300) -> Callable[[Delivery], str | None]:
    """Return a function that verifies Stripe's deliveries: `Stripe-Signature` signs a time and the body; the id is the event's.

    `secret` is the endpoint's secret, including `whsec_`. A delivery is refused if it was signed more than `tolerance` seconds
    ago, or that far in the future. If there are several signatures, as while a secret is replaced, one of them must match.
    """
    key = _text("stripe", secret).encode()
    seconds = duration("tolerance", tolerance, zero=False)

    def verify(delivery: Delivery) -> str | None:
        parts = [part.strip().partition("=") for part in _header(delivery, "Stripe-Signature").split(",")]
        times = [value for name, _, value in parts if name == "t"]
        if len(times) != 1 or not (times[0].isascii() and times[0].isdigit() and len(times[0]) < 20):
            raise BadSignature("Stripe-Signature doesn't contain exactly one time, t=…")
        expected = _hex(key, times[0].encode() + b"." + delivery.body)
        if not any(_is_same(value, expected) for name, _, value in parts if name == "v1"):
            raise BadSignature("no v1 of Stripe-Signature matches the time, the body and the secret")
        if abs(time.time() - int(times[0])) > seconds:
            raise BadSignature(f"it was signed more than {seconds:g} s ago, or in the future")
        return _event_id(delivery.body)

    return verify


def standard(secret: str) -> Callable[[Delivery], str | None]:
    """Return a function that verifies Standard Webhooks: `webhook-signature` signs id, time and body.

    `secret` is base64, with or without `whsec_`; the id is `webhook-id`. A delivery is refused if it was signed more than five
    minutes ago, or that far in the future. If there are several signatures, one of them must match; asymmetric ones are ignored.
    """
    text = _text("standard", secret).removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("the secret of standard() must be base64, with or without 'whsec_' before it; copy it from the sender")
    webhook = Webhook(key)

    def verify(delivery: Delivery) -> str | None:
        try:
            webhook.verify(delivery.body, dict(delivery.headers), json_parse=False)
        except WebhookVerificationError as error:
            raise BadSignature(str(error)) from error
        except ValueError as error:  # from decoding the body, the time or a signature
            raise BadSignature("webhook-signature or the body is malformed") from error
        return delivery.headers["webhook-id"]

    return verify


def _text(scheme: str, secret: object) -> str:
    if not isinstance(secret, str):
        raise TypeError(f"the secret of {scheme}() must be a str, not a {type(secret).__name__}")
    if not secret.strip():
        raise ValueError(f"the secret of {scheme}() is empty, so anybody could sign with it; is an environment variable not set?")
    return secret


def _header(delivery: Delivery, name: str) -> str:
    try:
        return delivery.headers[name.lower()]
    except KeyError:
        raise BadSignature(f"the header {name} is missing; does the sender have the secret?") from None


def _hex(key: bytes, message: bytes) -> str:
    return hmac.digest(key, message, "sha256").hex()


def _is_same(given: str, expected: str) -> bool:
    """Compare in constant time. A `str` that isn't ASCII can't be compared like that."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())


class _Event(msgspec.Struct):
    id: str | None = None


_events: Final = msgspec.json.Decoder(_Event)


def _event_id(body: bytes) -> str | None:
    try:
        return _events.decode(body).id
    except (msgspec.DecodeError, RecursionError):  # parsing the whole body will report it
        return None
