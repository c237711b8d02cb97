"""A proxy before an S3 server that breaks requests and answers on their way, for real."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

from tests.servers.s3 import BUCKET


class Request(NamedTuple):
    """A request as it came in."""

    operation: str
    key: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Line:
    """One request's way there and back; a fault decides what becomes of it."""

    def __init__(self, handler: _Handler, request: Request, upstream: int) -> None:
        self.request = request
        self._handler = handler
        self._upstream = upstream

    def forward(self, *, body: bytes | None = None, without: str = "") -> Answer:
        """Let the server do it, perhaps with another body or without one of the headers; its answer is not sent on yet."""
        headers = {
            name: value for name, value in self.request.headers.items() if name.lower() not in (without, "expect", "connection")
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=60)
        try:
            sent = self.request.body if body is None else body
            connection.request(self._handler.command, self._handler.path, sent or None, headers)
            response = connection.getresponse()
            skipped = ("connection", "transfer-encoding", "content-length")
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in skipped]
            return Answer(response.status, kept, response.read())
        finally:
            connection.close()

    def send(self, answer: Answer) -> None:
        self._begin(answer)
        if self._handler.command != "HEAD":
            self._handler.wfile.write(answer.body)

    def refuse(self, status: int, code: str) -> None:
        """Answer with an error of S3's, without asking the server."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()
        self.send(Answer(status, [("Content-Type", "application/xml")], body))

    def truncate(self, answer: Answer, *, reset: bool) -> None:
        """Send half of the answer's body, and end the connection, in order or with a reset."""
        self._begin(answer)
        self._handler.wfile.write(answer.body[: len(answer.body) // 2])
        self.hang_up(reset=reset)

    def hang_up(self, *, reset: bool) -> None:
        self._handler.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._handler.wfile.flush()
            self._handler.connection.close()

    def stay_silent(self) -> None:
        """Answer nothing until the client has gone."""
        self._handler.connection.recv(1)
        self._handler.close_connection = True

    def begin_head(self, text: str) -> None:
        self._handler.wfile.write(text.encode())

    def _begin(self, answer: Answer) -> None:
        self._handler.send_response_only(answer.status)
        for name, value in answer.headers:
            self._handler.send_header(name, value)
        if answer.status != 204:
            self._handler.send_header("Content-Length", str(len(answer.body)))
        self._handler.end_headers()


Fault = Callable[[Line], None]


class Proxy:
    """Forwards to the server at `upstream` and notes what passes; a fault, while there is one, is given every request instead."""

    def __init__(self, upstream: int) -> None:
        self.fault: Fault | None = None
        self.operations: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]  # how http.server hands things to handlers
        self._server.upstream = upstream  # type: ignore[attr-defined]  # as above

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, prefix: str = "") -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint_url={quote(self.endpoint)}&region=us-east-1"

    def once(self, operation: str, fault: Fault, *, skip: int = 0, times: int = 1) -> None:
        """Break `times` requests of this operation, after `skip` of them; all others pass."""
        matched = 0
        lock = threading.Lock()

        def chosen(line: Line) -> None:
            nonlocal matched
            if line.request.operation == operation:
                with lock:
                    matched += 1
                    breaks = skip < matched <= skip + times
                if breaks:
                    return fault(line)
            return line.send(line.forward())

        self.fault = chosen

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _any(self) -> None:
        server: Any = self.server
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self._operation(), self._key(), dict(self.headers), self.rfile.read(length))
        server.proxy.operations[request.operation] += 1
        line = Line(self, request, server.upstream)
        try:
            if fault := server.proxy.fault:
                fault(line)
            else:
                line.send(line.forward())
        except ConnectionError:
            self.close_connection = True

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    def _operation(self) -> str:
        if self.command == "POST":
            return "DELETE"
        return "LIST" if self.command == "GET" and not self._key() else self.command

    def log_message(self, format: str, *args: Any) -> None:
        """The tests say what went wrong."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815  # the names that http.server calls


def refused(status: int, code: str) -> Fault:
    return lambda line: line.refuse(status, code)


def answer_lost(line: Line) -> None:
    """The request takes effect and its answer never comes."""
    line.forward()
    line.stay_silent()


def cut_before(line: Line) -> None:
    """The connection is reset before the request takes effect."""
    line.hang_up(reset=True)


def cut_after(line: Line) -> None:
    """The request takes effect, and the connection is reset."""
    line.forward()
    line.hang_up(reset=True)


def cut_in_head(line: Line) -> None:
    """Send the first lines of the answer, the last of them in part, and end the connection in order."""
    answer = line.forward()
    line.begin_head(f"HTTP/1.1 {answer.status} Cut\r\nContent-Type: application/xml\r\nContent-Len")
    line.hang_up(reset=False)


def truncated(line: Line) -> None:
    line.truncate(line.forward(), reset=False)


def reset_in_body(line: Line) -> None:
    line.truncate(line.forward(), reset=True)


def damaged(line: Line) -> None:
    """One byte of the request's body is changed on its way."""
    body = bytearray(line.request.body)
    body[len(body) // 2] ^= 1
    line.send(line.forward(body=bytes(body)))


def careless(line: Line) -> None:
    """As from a server that doesn't know `If-None-Match`."""
    line.send(line.forward(without="if-none-match"))
