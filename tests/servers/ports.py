"""Ports for the servers that the tests start."""

import random
import socket

# Below those that Linux, macOS and Windows give to outgoing connections: one of these would otherwise take the port of a
# server that is about to start, or that was killed and shall start again.
_PORTS = range(20_000, 30_000)
_random = random.SystemRandom()


def free_port() -> int:
    """A port on loopback on which nothing listens, that no outgoing connection will take."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
