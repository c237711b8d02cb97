"""Webhooks: deliveries that start runs or send events."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from durable_core.control import send
from durable_core.engine import decided, state_of
from durable_core.errors import Refused, StepDrift, StoreError
from durable_core.flow import Flow
from durable_core.store import Store

from .signatures import BadSignature, Delivery, Verify, github, standard, stripe

_HEALTH: Final = "/healthz"
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_RETRY_AFTER: Final = "10"
_logger: Final = logging.getLogger("durable_worker")


class Webhooks:
    """The webhooks of one worker, and the application that serves them."""

    def __init__(self, store: Store, flows: Collection[str], is_healthy: Callable[[], bool]) -> None:
        self._store: Final = store
        self._flows: Final = flows
        self._is_healthy: Final = is_healthy
        health = Route(_HEALTH, self._health, methods=["GET"])
        self.app: Final = Starlette(routes=[health], exception_handlers={HTTPException: _refusal})
        self.app.router.redirect_slashes = False  # few senders follow

    def add(
        self,
        path: str,
        flow: Flow[Any, Any] | None,
        *,
        verify: Any,
        run_id: Callable[[Any], str] | None,
        input: Callable[[Any], Any] | None,
        send_to: Callable[[Any], tuple[str, str]] | None,
        max_body: int,
    ) -> None:
        """Check a declaration, and serve it from now on."""
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise ValueError(f"path must be like '/github': letters, digits and '-._~', each part after a '/', not {path!r}")
        if path == _HEALTH:
            raise ValueError(f"path {path!r} is reserved for the worker's health check; choose another")
        if path in self.paths:
            raise ValueError(f"path {path!r} is already a webhook of this worker; choose another")
        if (flow is None) == (send_to is None):
            raise TypeError(f"webhook {path!r} needs either a flow to start, or send_to= for the event to send; give exactly one")
        if flow is not None:
            self._check_flow(flow, takes_payload=input is None)
        if run_id is not None and flow is None:
            raise TypeError(f"webhook {path!r} sends an event, so it takes no run_id=; send_to= returns the run's id")
        for what, function in (("run_id", run_id), ("input", input), ("send_to", send_to)):
            if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
                raise TypeError(f"{what} must be a plain function of the payload, not {function!r}")
        if not callable(verify) or verify in (github, stripe, standard):
            given = getattr(verify, "__name__", f"a {type(verify).__name__}")  # never a secret
            raise TypeError(f"verify must be github(secret), stripe(secret), standard(secret) or a function, not {given}")
        if isinstance(max_body, bool) or not isinstance(max_body, int) or max_body < 1:
            raise ValueError(f"max_body must be a number of bytes, at least 1, not {max_body!r}")
        webhook = _Webhook(self._store, path, flow, verify, run_id, input, send_to, max_body)
        self.app.router.routes.append(Route(path, webhook.answer, methods=["POST"]))

    @property
    def paths(self) -> Sequence[str]:
        """The declared paths."""
        return [route.path for route in self.app.routes if isinstance(route, Route) and route.path != _HEALTH]

    def _check_flow(self, flow: object, *, takes_payload: bool) -> None:
        if not isinstance(flow, Flow):
            raise TypeError(f"flow must be a function decorated with @flow, not {flow!r}")
        if flow.name not in self._flows:
            known = ", ".join(map(repr, self._flows))
            raise ValueError(f"flow {flow.name!r} is not one of this worker's flows, {known}; add it to them")
        if takes_payload:
            try:
                inspect.signature(flow).bind(None, payload=None)
            except TypeError as error:
                raise TypeError(
                    f"flow {flow.name!r} doesn't take the parsed body as `payload` ({error}): give it a parameter of that name or"
                    " give the webhook input=, a function of the payload that returns the flow's input"
                ) from None

    async def _health(self, request: Request) -> Response:
        healthy = self._is_healthy()
        return _json(200 if healthy else 503, {"working": healthy})


class _Webhook(msgspec.Struct, frozen=True):
    """Handles the deliveries to one path."""

    store: Store
    path: str
    flow: Flow[Any, Any] | None
    verify: Verify
    run_id: Callable[[Any], str] | None
    input: Callable[[Any], Any] | None
    send_to: Callable[[Any], tuple[str, str]] | None
    max_body: int

    async def answer(self, request: Request) -> Response:
        """Verify a delivery, and act on it. Raises `HTTPException` if nothing was done."""
        delivery = Delivery(await self._body(request), _headers(request))
        delivery_id = await self._verified(delivery)
        try:
            payload = msgspec.json.decode(delivery.body)
        except (msgspec.DecodeError, RecursionError):
            raise HTTPException(400, "the body is not JSON; have deliveries sent as application/json") from None
        try:
            if self.flow is None:
                return await self._send(payload)
            return await self._start(self.flow, payload, delivery_id)
        except HTTPException:
            raise
        except StepDrift:
            self._log("the run that it asks for has other input, or another flow")
            raise HTTPException(409, "the run exists with other input, or with another flow") from None
        except Refused:
            self._log("the event that it sends has another outcome already, or is none")
            raise HTTPException(409, "the event already has another outcome, or the step is not an event") from None
        except (TypeError, ValueError, RecursionError) as error:
            takes = "" if self.flow is None else f"; flow {self.flow.name!r} takes {inspect.signature(self.flow)}"
            self._log(f"what is made of the payload can't be recorded: {_place(error)}{takes}")
            raise HTTPException(400, "the value made from the payload can't be recorded") from None
        except Exception as error:
            self._log(f"nothing can be recorded now: {error if isinstance(error, StoreError) else _place(error)}")
            raise HTTPException(503, "try again later", {"Retry-After": _RETRY_AFTER}) from None

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self.max_body:
                    raise HTTPException(413, f"the body is larger than {self.max_body} bytes")
        except ClientDisconnect:
            raise HTTPException(400, "the body is incomplete") from None
        return bytes(body)

    async def _verified(self, delivery: Delivery) -> str | None:
        """Return the delivery's id, or None if it has none."""
        try:
            found: Any = self.verify(delivery)
            if inspect.isawaitable(found):
                found = await found
            if found is not None and not isinstance(found, str):
                # For example, a function that returns False for a bad delivery.
                kind = type(found).__name__
                raise BadSignature(
                    f"verify= must return the delivery's id or None, and raise for a bad one; it returned a {kind}"
                )
        except Exception as error:
            self._log(str(error) if isinstance(error, BadSignature) else f"verify= raised {_place(error)}")
            raise HTTPException(401, "the delivery can't be verified") from None
        return found or None

    async def _start(self, flow: Flow[Any, Any], payload: Any, delivery_id: str | None) -> Response:
        if self.run_id is not None:
            run_id = self._of(self.run_id, "run_id", payload)
        elif delivery_id is not None:
            run_id = f"{self.path[1:]}:{delivery_id}"
        else:
            raise HTTPException(400, "the delivery has no id")
        given = {"payload": payload} if self.input is None else self._of(self.input, "input", payload)
        if not isinstance(given, Mapping):
            raise TypeError(f"input= must return the flow's input by name, not a {type(given).__name__}")
        # Passed by position, so that no member of the payload can replace one of the four.
        newest = await flow.start(self.store, run_id, None, None, **given)
        if not decided(newest):
            return _json(202, {"run_id": run_id})
        state = state_of(newest)
        result = {"result": msgspec.Raw(newest.result or b"null")} if state == "succeeded" else {}
        return _json(200, {"run_id": run_id, "status": state, **result})

    async def _send(self, payload: Any) -> Response:
        assert self.send_to is not None
        run_id, step_id = self._of(self.send_to, "send_to", payload)
        value = payload if self.input is None else self._of(self.input, "input", payload)
        await send(self.store, run_id, step_id, value)
        return _json(202, {"run_id": run_id})

    def _of(self, function: Callable[[Any], Any], what: str, payload: Any) -> Any:
        """Call a function of the application with the payload."""
        try:
            return function(payload)
        except Exception as error:
            self._log(f"{what}= raised {_place(error)}")
            raise HTTPException(400, "the payload can't be read") from None

    def _log(self, why: str) -> None:
        _logger.warning("webhook %s refused a delivery: %s", self.path, why)


def _place(error: Exception) -> str:
    """Return an error's type and line, without its message, which may contain a part of the payload or a secret."""
    kind, trace = type(error).__name__, error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return kind if trace is None else f"{kind} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def _headers(request: Request) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _json(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"error": error.detail}, error.headers)
