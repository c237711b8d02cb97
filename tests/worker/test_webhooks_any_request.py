"""Whatever is sent, the answer is one of those that are documented, and a run begins at 200 and 202 alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_core import MemoryStore, Runner, flow
from durable_worker import Worker, github, standard, stripe
from tests.fuzz.fuzzing import EXAMPLES
from tests.worker.deliveries import SECRET, STANDARD_SECRET, STRIPE_SECRET, by_github, by_standard, by_stripe

DOCUMENTED = {200, 202, 400, 401, 404, 405, 409, 413}  # and 503, which no request brings about
LARGEST = 200


class Line(msgspec.Struct):
    name: str
    amount: int = 1


@flow
async def anything(runner: Runner, payload: Any) -> None: ...


@flow
async def typed(runner: Runner, name: str, lines: list[Line], weight: float | None = None) -> None: ...


@flow
async def named(runner: Runner, **input: Any) -> None: ...


def worker_with_webhooks() -> Worker:
    worker = Worker(MemoryStore(), [anything, typed, named])
    worker.webhook("/github", anything, verify=github(SECRET), max_body=LARGEST)
    worker.webhook("/stripe", typed, verify=stripe(STRIPE_SECRET), input=lambda payload: payload, max_body=LARGEST)
    worker.webhook("/standard", named, verify=standard(STANDARD_SECRET), input=lambda payload: payload, max_body=LARGEST)
    worker.webhook("/chosen", anything, verify=lambda delivery: None, run_id=lambda payload: payload["run"], max_body=LARGEST)
    worker.webhook("/event", send_to=lambda payload: (payload["run"], payload["step"]), verify=lambda delivery: None)
    return worker


async def ask(app: Any, method: str, path: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes]) -> tuple[int, bytes]:
    """Send a request as a server would, one that passes on whatever it is sent."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    left, sent = iter(messages), []

    async def receive() -> Any:
        return next(left)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def check(method: str, path: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes]) -> int:
    worker = worker_with_webhooks()
    status, body = await ask(worker.app, method, path, headers, chunks)
    if path == "/healthz" and method in ("GET", "HEAD"):
        assert status == 503  # it does not poll
        return status
    assert status in DOCUMENTED
    answer = json.loads(body)
    assert isinstance(worker.store, MemoryStore)
    runs = [run_id async for run_id in worker.store.runs()]
    assert runs == ([answer["run_id"]] if status in (200, 202) else [])
    assert set(answer) == ({"run_id"} if status == 202 else {"error"})
    if status in (200, 202):  # and the same again
        again, _ = await ask(worker.app, method, path, headers, chunks)
        assert again == status
    return status


METHODS = st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post", "", "\x00"])
KNOWN = ["/github", "/stripe", "/standard", "/chosen", "/event"]
PATHS = st.one_of(
    st.sampled_from([*KNOWN, *KNOWN, "/healthz", "/", "", "*", "/github/", "//github"]),
    st.binary(max_size=20).map(lambda path: "/" + path.decode("latin-1")),
)
SIGNED = ["x-hub-signature-256", "x-github-delivery", "stripe-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]
OTHERS = ["content-length", "content-type", "transfer-encoding", "host", "X-Hub-Signature-256"]
NAMES = st.sampled_from([*SIGNED, *OTHERS]).map(str.encode)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=6)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "a", "$flow", "\x00", "\ud800", "é", "x" * 99])
)
KEYS = st.sampled_from(["run", "step", "id", "name", "lines", "weight", "amount", "at", "store", "runner", "payload", "", "é"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8)
# Python writes NaN too, and lone surrogates, which are no JSON.
BODIES = st.one_of(
    st.binary(max_size=LARGEST + 20), VALUES.map(json.dumps).map(str.encode), st.sampled_from([b"[" * 150, b'{"a":' * 30])
)


@settings(deadline=None, max_examples=max(200, EXAMPLES))
@given(METHODS, PATHS, HEADERS, st.lists(BODIES, max_size=3))
def test_any_request(method: str, path: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes]) -> None:
    """Any bytes as a body in any pieces, any headers, some of them twice, any method and path."""
    asyncio.run(check(method, path, headers, chunks))


SIGNERS = {"/github": by_github, "/stripe": by_stripe, "/standard": by_standard}


@settings(deadline=None, max_examples=max(100, EXAMPLES))
@given(st.sampled_from([*SIGNERS]), BODIES)
def test_any_signed_body(path: str, body: bytes) -> None:
    """Who can sign can send anything, and gets past the signature with it, but for text that is none."""
    status = asyncio.run(check("POST", path, encoded(SIGNERS[path](body)), [body]))
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    assert status == 413 if len(body) > LARGEST else status in (202, 400)


@settings(deadline=None, max_examples=max(100, EXAMPLES))
@given(st.sampled_from(["/chosen", "/event"]), VALUES)
def test_any_payload(path: str, payload: Any) -> None:
    """Ids that the payload names are checked as any others."""
    body = json.dumps(payload).encode()
    status = asyncio.run(check("POST", path, [], [body]))
    assert status in (202, 400, 413)


def test_the_requests_above_reach_each_answer() -> None:
    """Each webhook takes what is right for it, so that nothing above is refused for another reason than it should be."""
    right = {
        "/github": b"[1, 2]",
        "/stripe": b'{"id": "evt_1", "name": "a", "lines": [{"name": "b"}]}',
        "/standard": b'{"a": {"b": null}}',
        "/chosen": b'{"run": "a"}',
        "/event": b'{"run": "a", "step": "b"}',
    }
    for path, body in right.items():
        headers = encoded(SIGNERS[path](body)) if path in SIGNERS else []
        expected = 400 if path == "/stripe" else 202  # the flow takes no `id`
        assert asyncio.run(check("POST", path, headers, [body[:5], body[5:]])) == expected
        if path in SIGNERS:
            assert asyncio.run(check("POST", path, [], [body])) == 401
        assert asyncio.run(check("POST", path, headers, [b" " * 2**20, body])) == 413
        assert asyncio.run(check("PUT", path, headers, [body])) == 405
        assert asyncio.run(check("POST", path + "/", headers, [body])) == 404
