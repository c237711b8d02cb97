"""What a delivery does, and what it is answered."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest

from durable_core import MemoryStore, Runner, StepRecord, Store, StoreError, flow
from durable_core.control import cancel, result, status
from durable_worker import Delivery, Verify, Worker, github, standard, stripe
from tests.worker.deliveries import SECRET, STANDARD_SECRET, STRIPE_SECRET, by_github, by_standard, by_stripe

PUSH = b'{"after": "6dcb09b", "pusher": {"name": "ada"}}'


@flow
async def on_push(runner: Runner, payload: dict[str, Any]) -> str:
    return await runner.step("greet", lambda: f"thank you, {payload['pusher']['name']}")


@flow
async def build(runner: Runner, commit: str, by: str = "nobody") -> str:
    return f"{commit} by {by}"


@flow
async def order(runner: Runner, **input: Any) -> dict[str, Any]:
    await runner.event("paid", timeout=timedelta(days=1))
    return input


@flow(fails_on=ValueError)
async def fails(runner: Runner, payload: Any) -> None:
    raise ValueError("the password is hunter2")


FLOWS = [on_push, build, order, fails]


def trust(delivery: Delivery) -> str | None:
    """Take anything; the id is a header."""
    return delivery.headers.get("x-id")


def made(store: Store | None = None) -> Worker:
    return Worker(MemoryStore() if store is None else store, FLOWS)


def client_of(app: Any) -> httpx.AsyncClient:
    # An exception that leaves the application is raised here.
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hooks")


async def post(app: Any, path: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)


async def ids(store: Store) -> list[str]:
    assert isinstance(store, MemoryStore)
    return [run_id async for run_id in store.runs()]


@pytest.mark.parametrize(
    ("verify", "signed", "run_id"),
    [
        (github(SECRET), by_github, "hooks/push:72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        (stripe(STRIPE_SECRET), by_stripe, "hooks/push:evt_1"),
        (standard(STANDARD_SECRET), by_standard, "hooks/push:msg_1"),
    ],
    ids=["github", "stripe", "standard"],
)
async def test_a_delivery_asks_for_a_run(verify: Verify, signed: Callable[[bytes], dict[str, str]], run_id: str) -> None:
    """It is answered 202 with the run's id, which is made of the path and the delivery's id; again it starts nothing."""
    worker = made()
    worker.webhook("/hooks/push", on_push, verify=verify)
    body = PUSH[:-1] + b', "id": "evt_1"}' if signed is by_stripe else PUSH
    for _ in range(2):
        answer = await post(worker.app, "/hooks/push", body, signed(body))
        assert (answer.status_code, answer.json()) == (202, {"run_id": run_id})
        assert answer.headers["content-type"] == "application/json"
    assert await ids(worker.store) == [run_id]
    found = await status(worker.store, run_id)
    assert (found.flow, found.status, found.input) == ("on_push", "waiting", {"payload": json.loads(body)})


def test_a_worker_names_the_paths_of_its_webhooks() -> None:
    """In the order in which they were declared; whether it works is asked elsewhere."""
    worker = made()
    assert worker.paths == []
    for path in ("/b", "/a"):
        worker.webhook(path, on_push, verify=trust)
    assert worker.paths == ["/b", "/a"]


async def test_a_run_that_has_ended_is_answered_with_its_result() -> None:
    """A delivery that comes again after the end is answered 200, with what the flow returned."""
    worker = made()
    worker.webhook("/push", on_push, verify=github(SECRET))
    run_id = (await post(worker.app, "/push", PUSH, by_github(PUSH))).json()["run_id"]
    await on_push.run(worker.store, run_id)
    answer = await post(worker.app, "/push", PUSH, by_github(PUSH))
    expected = {"run_id": run_id, "status": "succeeded", "result": "thank you, ada"}
    assert (answer.status_code, answer.json()) == (200, expected)


async def test_a_run_that_failed_or_was_cancelled_is_answered_200_without_its_error() -> None:
    """Sending it again would not help, and what went wrong is not for the sender."""
    worker = made()
    worker.webhook("/fails", fails, verify=trust)
    for run, state in (("a", "failed"), ("b", "cancelled")):
        asked = await post(worker.app, "/fails", {}, {"x-id": run})
        if state == "cancelled":
            await cancel(worker.store, f"fails:{run}")
        with pytest.raises(Exception, match=r"hunter2|cancelled"):
            await fails.run(worker.store, f"fails:{run}")
        answer = await post(worker.app, "/fails", {}, {"x-id": run})
        assert (asked.status_code, answer.status_code) == (202, 200)
        assert answer.json() == {"run_id": f"fails:{run}", "status": state}


async def test_input_and_run_id_are_functions_of_the_payload() -> None:
    """The run id is used as it is, so that two deliveries about one commit are one run."""
    worker = made()
    worker.webhook(
        "/push",
        build,
        verify=github(SECRET),
        run_id=lambda payload: f"build-{payload['after']}",
        input=lambda payload: {"commit": payload["after"], "by": payload["pusher"]["name"]},
    )
    for delivery in ("1", "2", None):
        answer = await post(worker.app, "/push", PUSH, by_github(PUSH, delivery))
        assert (answer.status_code, answer.json()) == (202, {"run_id": "build-6dcb09b"})
    assert await build.run(worker.store, "build-6dcb09b") == "6dcb09b by ada"


async def test_ids_of_different_webhooks_never_meet() -> None:
    """Two senders number their deliveries from 1, and both are heard."""
    worker = made()
    for path in ("/a", "/b", "/a/b"):
        worker.webhook(path, on_push, verify=trust)
        assert (await post(worker.app, path, PUSH, {"x-id": "1"})).status_code == 202
    assert sorted(await ids(worker.store)) == ["a/b:1", "a:1", "b:1"]


async def test_verify_may_be_any_function_of_the_delivery() -> None:
    """It gets the body as it came and the headers in lower case, and may be asynchronous."""
    seen: list[Delivery] = []

    async def verify(delivery: Delivery) -> str:
        await asyncio.sleep(0)
        seen.append(delivery)
        return "7"

    worker = made()
    worker.webhook("/push", on_push, verify=verify)
    body = b' {"pusher":\t{"name": "ada"}}\n'
    answer = await post(worker.app, "/push", body, {"X-Odd": "yes"})
    assert answer.json() == {"run_id": "push:7"}
    assert (seen[0].body, seen[0].headers["x-odd"]) == (body, "yes")


@pytest.mark.parametrize("answer", [False, True, 7, b"7", ["7"]])
async def test_what_verify_returns_is_an_id_or_nothing(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A function that returns whether it trusts a delivery would trust all of them: nothing is taken from it."""
    worker = made()
    worker.webhook("/push", on_push, verify=lambda delivery: answer)
    found = await post(worker.app, "/push", PUSH)
    assert (found.status_code, await ids(worker.store)) == (401, [])
    assert "raise for a bad one; it returned a" in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyError, UnicodeDecodeError, RecursionError, AssertionError, StoreError])
async def test_whatever_verify_raises_is_401_and_stays_inside(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """The sender learns nothing of it; the log tells type and line, and no message, which may hold a secret."""

    def verify(delivery: Delivery) -> None:
        raise error("utf-8", b"hunter2", 0, 1, "hunter2") if error is UnicodeDecodeError else error("hunter2")

    worker = made()
    worker.webhook("/push", on_push, verify=verify)
    found = await post(worker.app, "/push", PUSH)
    assert (found.status_code, found.json()) == (401, {"error": "the delivery can't be verified"})
    assert await ids(worker.store) == []
    assert f"webhook /push refused a delivery: verify= raised {error.__name__} at {__file__}:" in caplog.text
    assert "hunter2" not in caplog.text


async def test_nothing_is_parsed_before_it_is_verified() -> None:
    """Who can't sign learns nothing of how a payload is read."""
    worker = made()
    worker.webhook("/push", on_push, verify=github(SECRET))
    for body in (b"{", b"", b"\xff", b"[" * 100_000):
        assert (await post(worker.app, "/push", body)).status_code == 401
        assert (await post(worker.app, "/push", body, by_github(body))).status_code == 400
    assert await ids(worker.store) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b"1e999",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'"\\ud800"',
        b"{} {}",
        b"[" * 100_000 + b"]" * 100_000,
        b"payload=%7B%7D",
    ],
    ids=lambda body: str(body[:12]),
)
async def test_a_body_that_is_no_json_is_400(body: bytes) -> None:
    """Also a form, which GitHub sends unless told otherwise: the answer says what to set."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    worker.webhook("/paid", send_to=lambda payload: ("order-1", "paid"), verify=trust)
    for path in ("/push", "/paid"):
        answer = await post(worker.app, path, body, {"x-id": "1"})
        assert (answer.status_code, await ids(worker.store)) == (400, [])
        assert answer.json() == {"error": "the body is not JSON; have deliveries sent as application/json"}


@pytest.mark.parametrize(
    ("body", "delivery_id"),
    [
        (b"[]", "1"),  # an input by name is asked for
        (b'{"commit": 7}', "1"),
        (b'{"commit": "a", "color": "red"}', "1"),
        (b"{}", "1"),
        (b'{"commit": "a", "runner": 1}', "1"),
        (b'{"commit": "a", "at": 60}', "1"),
        (b'{"commit": "a", "store": 1}', "1"),
        (b'{"commit": "a", "run_id": "x"}', "1"),
        (b'{"commit": "a", "connection": 1}', "1"),
        (b'{"commit": "a", "self": 1}', "1"),
        (b'{"commit": "a"}', None),
        (b'{"commit": "a"}', ""),
        (b'{"commit": "a"}', "x" * 600),
        (b'{"commit": "a"}', "\x85"),
    ],
)
async def test_a_delivery_that_the_flow_cannot_take_is_400(
    body: bytes, delivery_id: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an id, with one that is none, or with input that the flow doesn't take, nothing begins."""
    worker = made()
    worker.webhook("/build", build, verify=lambda delivery: delivery_id, input=lambda payload: payload)
    answer = await post(worker.app, "/build", body)
    assert (answer.status_code, await ids(worker.store)) == (400, [])
    assert "error" in answer.json()
    assert "red" not in caplog.text + answer.text


async def test_a_member_of_the_payload_is_never_an_option_of_the_start() -> None:
    """A flow that takes any input by name is not begun later because a sender says so."""
    worker = made()
    worker.webhook("/order", order, verify=trust, input=lambda payload: payload)
    for member in ("at", "store", "run_id", "connection", "self"):
        assert (await post(worker.app, "/order", {member: 5}, {"x-id": member})).status_code == 400
    assert await ids(worker.store) == []
    assert (await post(worker.app, "/order", {"other": 5}, {"x-id": "1"})).status_code == 202


@pytest.mark.parametrize(
    "bad", [lambda payload: payload["nothing"], lambda payload: payload["a"]["b"], lambda payload: int(payload["a"][0])]
)
async def test_a_payload_that_a_function_of_the_application_cannot_read_is_400(
    bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which function, and at which line; nothing of the payload, and nothing to the sender."""
    worker = made()
    worker.webhook("/input", build, verify=trust, input=bad)
    worker.webhook("/run-id", build, verify=trust, run_id=bad, input=lambda payload: {"commit": "a"})
    worker.webhook("/send-to", send_to=bad, verify=trust)
    worker.webhook("/value", send_to=lambda payload: ("order-1", "paid"), input=bad, verify=trust)
    for path in ("/input", "/run-id", "/send-to", "/value"):
        answer = await post(worker.app, path, {"a": ["hunter2"]}, {"x-id": "1"})
        assert (answer.status_code, answer.json()) == (400, {"error": "the payload can't be read"})
    assert await ids(worker.store) == []
    assert [word for word in ("input", "run_id", "send_to") if f"{word}= raised" not in caplog.text] == []
    assert f"at {__file__}:" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("run_id", [None, 7, "", "$flow", "a\nb", "x" * 513, ["a"], "\ud800"])
async def test_a_run_id_that_is_none_is_400(run_id: Any) -> None:
    """What `run_id=` returns is checked as any run id."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust, run_id=lambda payload: run_id)
    assert (await post(worker.app, "/push", PUSH)).status_code == 400
    assert await ids(worker.store) == []


@pytest.mark.parametrize(
    "target", [None, 7, "paid", ("order-1",), ("order-1", 7), ("", "paid"), ("order-1", "$flow"), ("a", "b", "c")]
)
async def test_a_target_that_is_none_is_400(target: Any) -> None:
    """What `send_to=` returns must be a run and a step."""
    worker = made()
    worker.webhook("/paid", send_to=lambda payload: target, verify=trust)
    assert (await post(worker.app, "/paid", {})).status_code == 400
    assert await ids(worker.store) == []


async def test_a_value_that_cannot_be_recorded_is_400() -> None:
    """`input=` may return anything; only what comes back from a log is taken."""
    worker = made()
    worker.webhook("/paid", send_to=lambda payload: ("order-1", "paid"), input=lambda payload: object(), verify=trust)
    worker.webhook("/order", order, input=lambda payload: {"a": object()}, verify=trust)
    for path in ("/paid", "/order"):
        assert (await post(worker.app, path, {}, {"x-id": "1"})).status_code == 400
    assert await ids(worker.store) == []


async def test_other_input_for_a_run_is_409(caplog: pytest.LogCaptureFixture) -> None:
    """One id is one run, with the input and the flow that it was begun with."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    worker.webhook("/build", build, verify=trust, run_id=lambda payload: "push:1", input=lambda payload: {"commit": "a"})
    assert (await post(worker.app, "/push", {"a": 1}, {"x-id": "1"})).status_code == 202
    for path in ("/push", "/build"):
        answer = await post(worker.app, path, {"a": "hunter2"}, {"x-id": "1"})
        assert answer.status_code == 409
        assert "hunter2" not in answer.text + caplog.text
    assert (await status(worker.store, "push:1")).input == {"payload": {"a": 1}}


async def test_a_delivery_sends_an_event() -> None:
    """The run that waits for it gets the payload, or what `input=` makes of it; the same again changes nothing."""
    worker = made()
    to = lambda payload: (f"order-{payload['order']}", "paid")  # noqa: E731
    worker.webhook("/paid", send_to=to, verify=stripe(STRIPE_SECRET))
    worker.webhook("/paid/amount", send_to=to, input=lambda payload: payload["amount"], verify=stripe(STRIPE_SECRET))
    body = b'{"order": 7, "amount": 90}'
    for _ in range(2):
        answer = await post(worker.app, "/paid", body, by_stripe(body))
        assert (answer.status_code, answer.json()) == (202, {"run_id": "order-7"})
    record = await worker.store.get("order-7", "paid")
    assert record is not None
    assert (record.kind, record.revision, record.value()) == ("event", 0, {"order": 7, "amount": 90})
    answer = await post(worker.app, "/paid/amount", body, by_stripe(body))
    assert answer.status_code == 409
    assert await order.run(worker.store, "order-7") == {}


async def test_an_event_that_comes_after_its_deadline_is_409() -> None:
    """Not 410, at which senders give a webhook up."""
    worker = made()
    worker.webhook("/paid", send_to=lambda payload: ("order-1", "paid"), verify=trust)
    worker.webhook("/slept", send_to=lambda payload: ("order-1", "slept"), verify=trust)
    async with Runner(worker.store, run_id="order-1", wait_limit=60) as runner:
        await runner.step("slept", lambda: None)
        with pytest.raises(Exception, match="paid"):
            await runner.event("paid", timeout=0.01)
    for path in ("/paid", "/slept"):
        assert (await post(worker.app, path, {})).status_code == 409


class Away(MemoryStore):
    """A store whose server is gone, or full, or broken in some way that it does not know of."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def append(self, record: StepRecord) -> StepRecord:
        raise self.error


@pytest.mark.parametrize("error", [StoreError("the server at db:5432 is away"), OSError(28, "hunter2"), RuntimeError("hunter2")])
async def test_a_store_that_is_away_is_503(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """The sender is asked to send it again later; it learns nothing of the store."""
    worker = made(Away(error))
    worker.webhook("/push", on_push, verify=trust)
    worker.webhook("/paid", send_to=lambda payload: ("order-1", "paid"), verify=trust)
    for path in ("/push", "/paid"):
        answer = await post(worker.app, path, PUSH, {"x-id": "1"})
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"error": "try again later"}, "10")
    assert (str(error) in caplog.text) is isinstance(error, StoreError)
    assert "hunter2" not in caplog.text
    assert await ids(worker.store) == []


@pytest.mark.parametrize("chunks", [[1001], [1000, 1], [500, 500, 500], [1] * 1001])
async def test_a_body_is_counted_while_it_is_read(chunks: Sequence[int]) -> None:
    """One that is too large is 413 at the byte that is too many, whatever Content-Length says, and is not read on."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust, max_body=1000)
    left = [*chunks, 10**9]

    async def body() -> Any:
        while left:
            yield b" " * left.pop(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/push",
        "query_string": b"",
        "headers": [(b"content-length", b"2"), (b"x-id", b"1")],
    }
    sent: list[Any] = []
    stream = body()

    async def receive() -> Any:
        return {"type": "http.request", "body": await anext(stream), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    await worker.app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert left[-1] == 10**9
    exact = PUSH + b" " * (1000 - len(PUSH))
    assert (await post(worker.app, "/push", exact, {"x-id": "1"})).status_code == 202
    assert (await post(worker.app, "/push", exact + b" ", {"x-id": "2"})).status_code == 413


async def test_a_body_is_a_mebibyte_at_most_unless_told() -> None:
    """A sender that is not known yet can make us hold that much, and no more."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    exact = PUSH + b" " * (2**20 - len(PUSH))
    assert (await post(worker.app, "/push", exact, {"x-id": "1"})).status_code == 202
    assert (await post(worker.app, "/push", exact + b" ", {"x-id": "2"})).status_code == 413


async def test_a_sender_that_goes_away_starts_nothing() -> None:
    """Half a body is none."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    parts = iter([{"type": "http.request", "body": PUSH, "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-id", b"1")]
    await worker.app({"type": "http", "method": "POST", "path": "/push", "query_string": b"", "headers": headers}, receive, send)
    assert (sent[0]["status"], await ids(worker.store)) == (400, [])


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
async def test_only_post_is_taken(method: str) -> None:
    """Anything else is 405, and says what would be taken."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    async with client_of(worker.app) as client:
        answer = await client.request(method, "/push", content=PUSH, headers={"x-id": "1"})
    assert (answer.status_code, answer.headers["allow"], await ids(worker.store)) == (405, "POST", [])


@pytest.mark.parametrize("path", ["/", "/pus", "/push/", "/push/1", "//push", "/PUSH", "/push%2F1", "/..", "/healthz/"])
async def test_another_path_is_404(path: str) -> None:
    """No other spelling of a path is taken, and nobody is sent elsewhere: few senders follow."""
    worker = made()
    worker.webhook("/push", on_push, verify=trust)
    answer = await post(worker.app, path, PUSH, {"x-id": "1"})
    assert (answer.status_code, answer.json(), await ids(worker.store)) == (404, {"error": "Not Found"}, [])


async def test_a_webhook_may_be_declared_after_the_application_was_mounted() -> None:
    """`worker.app` is one object, whenever it is asked for."""
    worker = made()
    app = worker.app
    assert (await post(app, "/push", PUSH, {"x-id": "1"})).status_code == 404
    worker.webhook("/push", on_push, verify=trust)
    assert (await post(app, "/push", PUSH, {"x-id": "1"})).status_code == 202
    assert worker.app is app


async def test_a_worker_that_does_not_poll_is_not_well() -> None:
    """`/healthz` is for whoever restarts processes."""
    worker = made()
    async with client_of(worker.app) as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()) == (503, {"working": False})
        assert (await client.post("/healthz")).status_code == 405


@pytest.mark.parametrize(
    ("path", "arguments", "error", "message"),
    [
        ("push", {"flow": on_push}, ValueError, r"path must be like '/github'.*not 'push'"),
        ("", {"flow": on_push}, ValueError, "path must be like '/github'.*not ''"),
        ("/", {"flow": on_push}, ValueError, "path must be like"),
        ("/push/", {"flow": on_push}, ValueError, "path must be like"),
        ("/{owner}", {"flow": on_push}, ValueError, "path must be like"),
        ("/a b", {"flow": on_push}, ValueError, "path must be like"),
        ("/a\n", {"flow": on_push}, ValueError, "path must be like"),
        (None, {"flow": on_push}, ValueError, "path must be like"),
        ("/healthz", {"flow": on_push}, ValueError, "'/healthz' is reserved for the worker's health check; choose another"),
        ("/there", {"flow": on_push}, ValueError, "'/there' is already a webhook of this worker"),
        ("/push", {}, TypeError, "needs either a flow to start, or send_to="),
        ("/push", {"flow": on_push, "send_to": lambda payload: ("a", "b")}, TypeError, "needs either a flow"),
        ("/push", {"flow": lambda runner: None}, TypeError, "flow must be a function decorated with @flow, not <function"),
        (
            "/push",
            {"flow": flow(name="else")(on_push.__wrapped__)},
            ValueError,
            "flow 'else' is not one of this worker's flows, 'on_push',",
        ),
        (
            "/push",
            {"flow": build},
            TypeError,
            r"flow 'build' doesn't take the parsed body as `payload` .*give the webhook input=",
        ),
        ("/push", {"flow": on_push, "input": {"a": 1}}, TypeError, "input must be a plain function of the payload, not {'a': 1}"),
        ("/push", {"flow": on_push, "run_id": "a"}, TypeError, "run_id must be a plain function of the payload, not 'a'"),
        ("/push", {"send_to": ("a", "b")}, TypeError, "send_to must be a plain function of the payload"),
        ("/push", {"send_to": lambda payload: ("a", "b"), "run_id": lambda payload: "a"}, TypeError, "takes no run_id="),
        ("/push", {"flow": on_push, "verify": "hunter2"}, TypeError, "verify must be github.* or a function, not a str$"),
        ("/push", {"flow": on_push, "verify": None}, TypeError, "verify must be"),
        ("/push", {"flow": on_push, "verify": github}, TypeError, "verify must be github.* or a function, not github$"),
        ("/push", {"flow": on_push, "max_body": 0}, ValueError, "max_body must be a number of bytes, at least 1, not 0"),
        ("/push", {"flow": on_push, "max_body": True}, ValueError, "max_body must be a number of bytes, at least 1, not True"),
        ("/push", {"flow": on_push, "max_body": 1.5}, ValueError, "max_body must be"),
    ],
)
async def test_a_webhook_that_could_not_work_is_refused_at_once(
    path: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What is declared is checked before anything is served; a secret never shows."""
    worker = made()
    worker.webhook("/there", on_push, verify=trust)
    with pytest.raises(error, match=message) as caught:
        worker.webhook(path, **{"verify": trust, **arguments})
    assert "hunter2" not in str(caught.value)
    assert (await post(worker.app, "/push", PUSH, {"x-id": "1"})).status_code == 404


async def test_a_coroutine_function_of_the_payload_is_refused_at_once() -> None:
    """It would never be awaited."""

    async def later(payload: Any) -> str:
        return "a"

    with pytest.raises(TypeError, match="run_id must be a plain function"):
        made().webhook("/push", on_push, verify=trust, run_id=later)  # type: ignore[arg-type]  # on purpose


async def test_flows_that_take_the_payload_are_taken() -> None:
    """By that name, or by any; a method too, and one under the name that it had."""

    class Shop:
        @flow(name="method")
        async def sell(self, runner: Runner, payload: Any) -> None: ...

    worker = Worker(MemoryStore(), [*FLOWS, Shop().sell], aliases={"former": on_push})
    for path, taken in {"/a": on_push, "/b": order, "/c": Shop().sell, "/d": on_push.named("former")}.items():
        worker.webhook(path, taken, verify=trust)
        assert (await post(worker.app, path, {}, {"x-id": "1"})).status_code == 202


async def test_secrets_and_payloads_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a delivery is answered."""
    caplog.set_level(logging.DEBUG)
    worker = made()
    for path, verify in {"/a": github(SECRET), "/b": stripe(STRIPE_SECRET), "/c": standard(STANDARD_SECRET)}.items():
        worker.webhook(path, build, verify=verify, input=lambda payload: payload)
    for body in (
        b'{"commit": "hunter2"}',
        b'{"commit": 7, "hunter2": "hunter2"}',
        b'["hunter2"]',
        b"hunter2",
        b'{"commit": {"hunter2": 1}}',
    ):
        for path, headers in {"/a": by_github(body), "/b": by_stripe(body), "/c": by_standard(body, id="hunter1")}.items():
            for given in (headers, {**headers, "x-hub-signature-256": "hunter2", "webhook-signature": "v1,hunter2"}, {}):
                await post(worker.app, path, body, given)
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert len(logged) > 10
    for word in ("hunter2", SECRET, STRIPE_SECRET, STANDARD_SECRET):
        assert not [line for line in logged if word in line]


async def test_the_result_of_a_run_that_a_delivery_began() -> None:
    """From the delivery to the value that somebody waits for."""
    worker = made()
    worker.webhook("/push", on_push, verify=github(SECRET))
    run_id = (await post(worker.app, "/push", PUSH, by_github(PUSH))).json()["run_id"]
    value, _ = await asyncio.gather(result(worker.store, run_id, returns=str), on_push.run(worker.store, run_id))
    assert value == "thank you, ada"
