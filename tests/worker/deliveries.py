"""Deliveries signed as their senders do, written from the schemes' public descriptions alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

SECRET = "It's a Secret to Everybody"
STRIPE_SECRET = "whsec_a-secret-of-the-endpoint"
KEY = b"thirty-two bytes, as recommended"
STANDARD_SECRET = "whsec_" + base64.b64encode(KEY).decode()


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """Compute an HMAC by its definition in RFC 2104."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + message).digest()
    found = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest()
    assert found == hmac.new(key, message, "sha256").digest()
    return found


def by_github(body: bytes, delivery: str | None = "72d3162e-cc78-11e3-81ab-4c9367dc0958", secret: str = SECRET) -> dict[str, str]:
    headers = {"x-hub-signature-256": "sha256=" + hmac_sha256(secret.encode(), body).hex(), "x-github-event": "push"}
    return headers if delivery is None else {**headers, "x-github-delivery": delivery}


def stripe_signature(body: bytes, at: float | str, secret: str = STRIPE_SECRET) -> str:
    moment = at if isinstance(at, str) else str(int(at))
    return hmac_sha256(secret.encode(), moment.encode() + b"." + body).hex()


def by_stripe(body: bytes, at: float | None = None, secret: str = STRIPE_SECRET) -> dict[str, str]:
    moment = int(time.time() if at is None else at)
    return {"stripe-signature": f"t={moment},v1={stripe_signature(body, moment, secret)},v0={'0' * 64}"}


def standard_signature(body: bytes, id: str, at: float, key: bytes = KEY) -> str:
    return "v1," + base64.b64encode(hmac_sha256(key, f"{id}.{int(at)}.".encode() + body)).decode()


def by_standard(body: bytes, id: str = "msg_1", at: float | None = None, key: bytes = KEY) -> dict[str, str]:
    moment = int(time.time() if at is None else at)
    return {"webhook-id": id, "webhook-timestamp": str(moment), "webhook-signature": standard_signature(body, id, moment, key)}
