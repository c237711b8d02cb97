"""A TCP proxy that breaks connections where a test wants it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes connections on to a port of this machine, until told otherwise; `target` may be set to another port at any time.

    Tests run it in threads, so that it works while their event loop is blocked.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.refusing = False
        """Whether new connections are closed at once."""
        self.refused = 0
        """How many connections were."""
        self.lost_answers = 0
        """How many answers of the server have been dropped."""
        self.farewells = 0
        """How many connections the server has closed while `keeps_open` was true, once its last words were passed on."""
        self.keeps_open = False
        """Whether a connection that the server closes stays open on the client's side."""
        self.fired = threading.Event()
        """Set once `cut_before`, `cut_after` or `hold` has struck."""
        self._lose = self._lose_then = 0
        self._before = self._after = self._held = self._without = b""
        self._passing = threading.Event()
        self._doomed: tuple[socket.socket, socket.socket] | None = None
        self._silent: frozenset[tuple[socket.socket, socket.socket]] = frozenset()
        self._closed = threading.Event()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection there is."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _reset(pair)

    def lose_answers(self, count: int = 1) -> None:
        """From now on take `count` answers from the server, pass none of them on, and reset their connections."""
        self._lose = count

    def cut_before(self, request: bytes) -> None:
        """Reset the connection that next sends these bytes, before the server gets them."""
        self._before = request

    def cut_after(self, request: bytes, *, lose: int = 0) -> None:
        """Reset the connection that next sends these bytes once the server has answered, and pass the answer on to nobody.

        From then on as many answers are lost as `lose` says.
        """
        self.fired.clear()
        self._after, self._lose_then = request, lose

    def hold(self, request: bytes, *, without: bytes) -> None:
        """Keep the next request that has these bytes, and none of `without`, from the server until `release`."""
        self._passing.clear()
        self.fired.clear()
        self._without, self._held = without, request

    def release(self) -> None:
        """Pass on what `hold` has kept, and keep nothing more."""
        self._held = b""
        self._passing.set()

    def hold_answers(self) -> None:
        """Let the connections that there are now get no more answers, without closing them; new ones work."""
        with self._lock:
            self._silent = frozenset(self._pairs)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._closed.set()
        self.release()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self.refusing:
                self.refused += 1
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        threading.Thread(target=self._answers, args=(pair,), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(65536):
                if self._before and self._before in data:
                    self._before = b""
                    self.fired.set()
                    break
                if self._held and self._held in data and self._without not in data:
                    self._held = b""
                    self.fired.set()
                    self._passing.wait()
                if self._after and self._after in data:
                    self._after, self._doomed = b"", pair
                server.sendall(data)
        self._drop(pair)

    def _answers(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        with suppress(OSError):
            while data := server.recv(65536):
                if self._doomed == pair:
                    self._doomed, self._lose = None, max(self._lose, self._lose_then)
                    self.fired.set()
                    break
                if self._lost():
                    break
                if pair in self._silent:
                    self._closed.wait()
                    break
                client.sendall(data)
            if self.keeps_open:
                self.farewells += 1
                self._closed.wait()
        self._drop(pair)

    def _lost(self) -> bool:
        with self._lock:
            if not self._lose:
                return False
            self._lose -= 1
            self.lost_answers += 1
            return True

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        _reset(pair)


@contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    """Run a proxy for one port while the context lasts."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


def _reset(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):
            # With no time to linger, closing sends RST: a cut, not a farewell.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
