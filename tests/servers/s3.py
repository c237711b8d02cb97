"""S3 servers for the tests: a bucket named in the environment, or else moto and ministack, started from wheels.

`DURABLE_TEST_S3_URL` is a store's URL, such as `s3://bucket/prefix?region=eu-central-1`, with credentials where boto3 finds them;
the suite then runs on that bucket. Tests that kill, break or count at a server always start their own.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import pytest

from tests.servers.ports import free_port

BUCKET = "durable-tests"
SERVERS = ["environment"] if "DURABLE_TEST_S3_URL" in os.environ else ["moto", "ministack"]
_START_SECONDS = 180.0
_SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class S3Server:
    """A server in a process of its own; it can be killed and started again on the same port."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.port = free_port()
        self._command = [part.format(port=self.port) for part in command]
        self._environment = {name: value.format(port=self.port) for name, value in environment.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str = "", bucket: str = BUCKET) -> str:
        """A store's URL; further options are appended with `&`."""
        return f"s3://{bucket}/{prefix}?endpoint_url={quote(self.endpoint)}&region=us-east-1"

    def client(self, **options: Any) -> Any:
        """A boto3 client of this server, by default as its owner."""
        import boto3
        from botocore.config import Config

        config = Config(max_pool_connections=32, retries={"total_max_attempts": 1, "mode": "standard"})
        options = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1", **options}
        service = options.pop("service", "s3")
        return boto3.session.Session().client(service, endpoint_url=self.endpoint, config=config, **options)

    def start(self) -> None:
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **_SECRETS, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_dies_with_parent(),
            )
            deadline = time.monotonic() + _START_SECONDS
            while not self._listens():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{self._command} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.02)

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

    def make_bucket(self, name: str = BUCKET) -> None:
        with _closing(self.client()) as client:
            client.create_bucket(Bucket=name)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto, which keeps its data in memory."""
    # This file imports its neighbours, and as a program it would look for them beside itself.
    root = str(Path(__file__).parents[2])
    with _running(S3Server(sys.executable, str(Path(__file__)), "{port}", PYTHONPATH=root)) as server:
        server.make_bucket()
        yield server


@contextmanager
def ministack(*, auth: bool = False) -> Iterator[S3Server]:
    """ministack, which keeps its data on disk; with `auth` it checks signatures and policies, and `test` may do everything."""
    with tempfile.TemporaryDirectory(prefix="durable-s3-", ignore_cleanup_errors=True) as folder:
        for name in ("data", "state", "tmp"):
            (Path(folder) / name).mkdir()
        environment = {
            "BIND_HOST": "127.0.0.1",  # its default is every interface
            "GATEWAY_PORT": "{port}",
            "SERVICES": "s3,iam,sts",
            "S3_PERSIST": "1",
            "S3_DATA_DIR": f"{folder}/data",
            "PERSIST_STATE": "1",
            "STATE_DIR": f"{folder}/state",
            "TMPDIR": f"{folder}/tmp",
            "LOG_LEVEL": "ERROR",
            "AUTH": "true" if auth else "false",
        }
        with _running(S3Server(sys.executable, "-m", "ministack", **environment)) as server:
            server.make_bucket()
            yield server


@contextmanager
def _running(server: S3Server) -> Iterator[S3Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session", autouse=True)
def s3_credentials() -> Iterator[None]:
    """Let stores, here and in child processes, find the servers' credentials and nobody's own."""
    import botocore.session

    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        # A session reads AWS's description of S3 anew, for a tenth of a second: too much for each of a thousand clients.
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        if "DURABLE_TEST_S3_URL" in os.environ:
            yield
            return
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**_SECRETS, **nowhere}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def moto_server(s3_credentials: None) -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def ministack_server(s3_credentials: None) -> Iterator[S3Server]:
    with ministack() as server:
        yield server


@pytest.fixture(params=SERVERS)
def s3_url(request: pytest.FixtureRequest) -> str:
    """A store's URL with nothing below it, on each S3 that can be had."""
    name = f"t-{uuid4().hex[:12]}"
    if request.param == "environment":
        parts = urlsplit(os.environ["DURABLE_TEST_S3_URL"])
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    server.make_bucket(name)
    return server.url("logs", name)


@contextmanager
def _closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()


def _dies_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan when pytest is killed


def _serve_moto(port: int) -> None:
    import threading

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def locked(environ: Any, start_response: Any) -> Any:
        # moto looks whether the key exists and stores it in two steps: two conditional PUTs at once could both win.
        with one_at_a_time:
            return app(environ, start_response)

    make_server("127.0.0.1", port, locked, threaded=True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    _serve_moto(int(sys.argv[1]))
