"""What each scheme takes for signed, and what it refuses."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_worker import BadSignature, Delivery, github, standard, stripe
from tests.worker.deliveries import (
    KEY,
    SECRET,
    STANDARD_SECRET,
    STRIPE_SECRET,
    by_github,
    by_standard,
    by_stripe,
    standard_signature,
    stripe_signature,
)

BODY = b'{"id": "evt_1", "amount": 90}'
SCHEMES: dict[str, tuple[Callable[[Delivery], str | None], Callable[[bytes], dict[str, str]], str]] = {
    "github": (github(SECRET), by_github, "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
    "stripe": (stripe(STRIPE_SECRET), by_stripe, "evt_1"),
    "standard": (standard(STANDARD_SECRET), by_standard, "msg_1"),
}
SIGNATURES = {"github": "x-hub-signature-256", "stripe": "stripe-signature", "standard": "webhook-signature"}
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def refused(scheme: str, body: bytes, headers: dict[str, str]) -> str:
    with pytest.raises(BadSignature) as caught:
        SCHEMES[scheme][0](Delivery(body, headers))
    return str(caught.value)


@schemes
def test_a_signed_delivery_gives_its_id(scheme: str) -> None:
    """What the sender signed is taken, and the id that it knows the delivery by is returned."""
    verify, sign, delivery_id = SCHEMES[scheme]
    assert verify(Delivery(BODY, sign(BODY))) == delivery_id


def test_the_example_that_github_publishes() -> None:
    """GitHub's documentation gives a secret, a body and their signature."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    delivery = Delivery(b"Hello, World!", {"x-hub-signature-256": signature})
    assert github("It's a Secret to Everybody")(delivery) is None
    assert by_github(b"Hello, World!")["x-hub-signature-256"] == signature


def test_the_example_that_standard_webhooks_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme's own libraries share a secret, a delivery of 2021 and its signature."""
    secret, body = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    signed = standard_signature(body, headers["webhook-id"], 1614265330, base64.b64decode(secret))
    assert signed == headers["webhook-signature"]
    for text in (secret, f"whsec_{secret}"):
        with pytest.raises(BadSignature, match="too old"):  # and nothing else is wrong with it
            standard(text)(Delivery(body, headers))
        now = by_standard(body, at=time.time(), key=base64.b64decode(secret))
        assert standard(text)(Delivery(body, now)) == "msg_1"


def test_the_form_that_stripe_publishes() -> None:
    """Stripe's documentation shows a header of one time, several signatures, and ones of a scheme that is none."""
    verify = stripe(STRIPE_SECRET, tolerance=timedelta(days=36500))
    good, other = stripe_signature(BODY, 1492774577), "5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd"
    fake = "6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"
    for header in (
        f"t=1492774577,v1={good},v0={fake}",
        f"t=1492774577,v1={other},v1={good}",
        f"v1={good}, v1={other}, t=1492774577, v2={fake}, v",
    ):
        assert verify(Delivery(BODY, {"stripe-signature": header})) == "evt_1"
    with pytest.raises(BadSignature, match="no v1"):
        verify(Delivery(BODY, {"stripe-signature": f"t=1492774577,v1={other},v0={good}"}))


def test_any_of_several_signatures_may_match() -> None:
    """While a secret is replaced, a sender signs with both; signatures of kinds that are unknown are passed over."""
    now = time.time()
    theirs, ours = standard_signature(BODY, "msg_1", now, b"another key"), standard_signature(BODY, "msg_1", now)
    for signature in (f"{theirs} {ours}", f"{ours} {theirs}", f"v1a,{'A' * 88} {theirs} {ours}"):
        headers = {**by_standard(BODY, at=now), "webhook-signature": signature}
        assert standard(STANDARD_SECRET)(Delivery(BODY, headers)) == "msg_1"


@schemes
def test_another_body_secret_or_signature_is_refused(scheme: str) -> None:
    """One bit of the body, another secret, or a signature that is cut, longer or of another delivery."""
    _, sign, _ = SCHEMES[scheme]
    name, headers = SIGNATURES[scheme], sign(BODY)
    refused(scheme, BODY + b" ", headers)
    refused(scheme, b"", headers)
    for place in range(len(BODY)):
        refused(scheme, BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :], headers)
    stranger: dict[str, Callable[[], dict[str, str]]] = {
        "github": lambda: by_github(BODY, secret="another"),
        "stripe": lambda: by_stripe(BODY, secret="another"),
        "standard": lambda: by_standard(BODY, key=b"another"),
    }
    refused(scheme, BODY, stranger[scheme]())
    signature = headers[name].removesuffix(f",v0={'0' * 64}")
    longer = signature.replace("=", "=0a", 1) if scheme == "github" else signature[:20] + "0a" + signature[20:]
    for bad in ("", "sha256=", "v1,", "t=,v1=", signature[:-2], signature[1:], longer, signature.upper()):
        refused(scheme, BODY, {**headers, name: bad})
    for bad in (
        "é" * 64,
        "sha256=" + "é" * 64,
        "v1,éé",
        "\udc80",
        "x" * 2**20,
        ",".join(["v1=0"] * 100_000),
        "v1,AAAA " * 10_000,
    ):
        refused(scheme, BODY, {**headers, name: bad})


@schemes
def test_a_missing_header_is_named(scheme: str) -> None:
    """Without a signature nothing is taken; whoever reads the log sees which header is missing."""
    headers = SCHEMES[scheme][1](BODY)
    message = refused(scheme, BODY, {})
    assert "issing" in message or "there is no" in message
    for name in headers.keys() - {"x-github-event", "x-github-delivery"}:
        refused(scheme, BODY, {other: value for other, value in headers.items() if other != name})


@schemes
def test_a_header_that_came_twice_is_refused(scheme: str) -> None:
    """Nobody can tell which of two was meant: joined, as HTTP joins them, they are no signature."""
    headers = SCHEMES[scheme][1](BODY)
    name = SIGNATURES[scheme]
    refused(scheme, BODY, {**headers, name: f"{headers[name]}, {headers[name]}"})


@pytest.mark.parametrize("seconds", [-301, 301, -86400, 10**9])
def test_a_delivery_that_was_signed_long_ago_or_will_be_is_refused(seconds: int) -> None:
    """Who has recorded a delivery can send it again for five minutes, and gets the run that it had started."""
    at = time.time() + seconds
    refused("stripe", BODY, by_stripe(BODY, at))
    refused("standard", BODY, by_standard(BODY, at=at))


@pytest.mark.parametrize("seconds", [-290, 290])
def test_clocks_may_differ(seconds: int) -> None:
    """Within the tolerance a delivery is taken, from a clock that is behind or ahead."""
    at = time.time() + seconds
    assert stripe(STRIPE_SECRET)(Delivery(BODY, by_stripe(BODY, at))) == "evt_1"
    assert standard(STANDARD_SECRET)(Delivery(BODY, by_standard(BODY, at=at))) == "msg_1"
    with pytest.raises(BadSignature, match="more than 60 s ago, or in the future"):
        stripe(STRIPE_SECRET, tolerance=60)(Delivery(BODY, by_stripe(BODY, at)))


@pytest.mark.parametrize("moment", ["", "now", "-1", "1e9", "٣", "9" * 30, "9" * 5000])
def test_a_time_that_is_none_is_refused(moment: str) -> None:
    """Though it is signed."""
    header = f"t={moment},v1={stripe_signature(BODY, moment)}"
    assert "one time" in refused("stripe", BODY, {"stripe-signature": header})


def test_two_times_are_refused() -> None:
    """A second time could make an old delivery young."""
    now, then = int(time.time()), int(time.time()) - 1000
    for first, second in ((now, then), (then, now)):
        header = f"t={first},t={second},v1={stripe_signature(BODY, then)}"
        assert "one time" in refused("stripe", BODY, {"stripe-signature": header})


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"7", b'{"id": 7}', b'{"id": null}', b"{", b"\xff", b"[" * 100_000])
def test_an_event_without_an_id_has_none(body: bytes) -> None:
    """Stripe's id is in the body, which whoever signed may have left out."""
    assert stripe(STRIPE_SECRET)(Delivery(body, by_stripe(body))) is None


@pytest.mark.parametrize("make", [github, stripe, standard])
def test_a_secret_that_is_none_is_refused_at_once(make: Callable[[Any], object]) -> None:
    """An empty secret would let anybody sign, so a variable that is not set must not pass for one."""
    for empty in ("", " ", "\n"):
        with pytest.raises(ValueError, match=r"the secret of \w+\(\) is empty"):
            make(empty)
    for value in (None, b"secret", 7):
        with pytest.raises(TypeError, match=r"the secret of \w+\(\) must be a str, not a \w+$"):
            make(value)


@pytest.mark.parametrize("secret", ["whsec_====", "not base64!", "whsk_AAAA", "AAAAA", "ÄÄÄÄ", "a-b_", "whsec_whsec_AAAA"])
def test_a_standard_secret_that_is_no_base64_is_refused_at_once(secret: str) -> None:
    """The library would leave out what it can't read, and check against another secret; the message doesn't show it."""
    with pytest.raises(ValueError, match="must be base64") as caught:
        standard(secret)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_standard_secret_may_lack_its_padding() -> None:
    """Some senders cut off what base64 ends with."""
    text = base64.b64encode(b"a key of 16 byte").decode()
    headers = by_standard(BODY, key=b"a key of 16 byte")
    assert standard(text.rstrip("="))(Delivery(BODY, headers)) == standard(text)(Delivery(BODY, headers)) == "msg_1"


@pytest.mark.parametrize("tolerance", [0, -1, float("inf"), True, "5"])
def test_a_tolerance_that_is_none_is_refused_at_once(tolerance: Any) -> None:
    """It is a finite number of seconds."""
    with pytest.raises((TypeError, ValueError), match="tolerance must be"):
        stripe("secret", tolerance=tolerance)


NAMES = ["x-hub-signature-256", "x-github-delivery", "stripe-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]
values = st.one_of(
    st.binary(max_size=80).map(lambda value: value.decode("latin-1")),
    st.lists(st.sampled_from(["t=", "v1=", "v1,", "sha256=", ",", " ", "=", "0", "A", str(int(time.time())), "é"])).map("".join),
    st.just(str(int(time.time()))),
)


@schemes
@settings(deadline=None)
@given(body=st.binary(), headers=st.dictionaries(st.sampled_from(NAMES), values))
def test_whatever_comes_is_refused_by_one_error(scheme: str, body: bytes, headers: dict[str, str]) -> None:
    """No bytes and no headers make a scheme raise anything else, or take what nobody signed."""
    refused(scheme, body, headers)
    refused(scheme, body, {**SCHEMES[scheme][1](BODY + b"!"), **headers})


@schemes
@settings(deadline=None)
@given(body=st.binary())
def test_any_bytes_can_be_signed(scheme: str, body: bytes) -> None:
    """The body is never looked into before it is known to be the sender's; the standard scheme is for text."""
    verify, sign, _ = SCHEMES[scheme]
    if scheme == "standard":
        try:
            body.decode()
        except UnicodeDecodeError:
            refused(scheme, body, sign(body))
            return
    verify(Delivery(body, sign(body)))


def test_nothing_of_a_secret_or_a_body_is_in_an_error() -> None:
    """What is logged of a delivery that was refused gives nothing away."""
    body = b'{"card": "4242-4242"}'
    for scheme, (_, sign, _) in SCHEMES.items():
        for headers in (sign(BODY), {**sign(body), SIGNATURES[scheme]: "v1,tell-tale t=tell-tale"}, {}):
            message = refused(scheme, body, headers)
            assert not [part for part in ("4242", "tell-tale", SECRET, STRIPE_SECRET, STANDARD_SECRET) if part in message]
    assert KEY.decode() not in repr(standard(STANDARD_SECRET))
