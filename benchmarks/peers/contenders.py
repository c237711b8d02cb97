"""Who is measured, the environment that each client runs in, and the server that it talks to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from tests.servers.ports import free_port
from tests.servers.postgres import PostgresServer, dies_with_parent

HERE = Path(__file__).parent
ENVIRONMENTS = Path(".nox/peers").absolute()
RESTATE_SERVER = "@restatedev/restate-server@1.7.12"
START_SECONDS = 60


@dataclass(frozen=True)
class Contender:
    """One line of the tables: a client program in its environment, on one kind of store."""

    key: str
    system: str
    what: str
    store: str  # postgres, sqlite, or the system's own server
    client: str
    environment: str = ""  # a file in requirements/; ours runs in the environment of the command
    query: str = ""
    resumes: bool = True

    @property
    def queues(self) -> bool:
        """Whether runs are asked for and left to a worker or a server, as no library needs it."""
        return "worker" in self.what or "service" in self.what

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.environment / "bin" / "python" if self.environment else Path(sys.executable)


CONTENDERS = [
    Contender("floor-postgres", "floor", "ten inserts by hand, each committed", "postgres", "floor_postgres", resumes=False),
    Contender("durable-postgres", "durable", "a `Runner`, under the lock", "postgres", "durable"),
    Contender("worker-postgres", "durable", "started, then run by a worker", "postgres", "durable_worker"),
    Contender("dbos-postgres", "DBOS", "asyncio workflow", "postgres", "dbos", "dbos"),
    Contender("absurd-postgres", "Absurd", "spawned, then run by workers", "postgres", "absurd", "absurd"),
    Contender(
        "langgraph-sync-postgres",
        "LangGraph",
        '`durability="sync"`',
        "postgres",
        "langgraph",
        "langgraph",
        query="?durability=sync",
    ),
    Contender(
        "langgraph-async-postgres", "LangGraph", "its default", "postgres", "langgraph", "langgraph", query="?durability=async"
    ),
    Contender("floor-sqlite", "floor", "ten inserts by hand, each committed", "sqlite", "floor_sqlite", resumes=False),
    Contender("durable-sqlite", "durable", "a `Runner`, under the lock", "sqlite", "durable"),
    Contender("dbos-sqlite", "DBOS", "asyncio workflow", "sqlite", "dbos", "dbos"),
    Contender(
        "langgraph-sync-sqlite", "LangGraph", '`durability="sync"`', "sqlite", "langgraph", "langgraph", query="?durability=sync"
    ),
    Contender("restate", "Restate", "its server and one service", "restate", "restate", "restate"),
    Contender("temporal", "Temporal", "its development server and one worker", "temporal", "temporal", "temporal"),
]


@dataclass
class Place:
    """Where a client finds what it talks to."""

    url: str
    syncing: int | None  # the process whose syncs count, if it runs already
    environment: dict[str, str] = field(default_factory=dict)


def make_environments(names: set[str]) -> dict[str, str]:
    """Make an environment for each name, and return why those that could not be made were not."""
    failures = {}
    for name in sorted(names - {""}):
        folder = ENVIRONMENTS / name
        uv = [sys.executable, "-m", "uv"]
        commands = [
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [*uv, "pip", "install", "--quiet", "--python", str(folder), "-r", str(HERE / "requirements" / f"{name}.txt")],
        ]
        if name == "restate":
            commands.append(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), RESTATE_SERVER])
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                failures[name] = f"{' '.join(command[:4])} failed: {getattr(error, 'stderr', '') or error}".strip()
                break
    return failures


@contextmanager
def place(contender: Contender, postgres: PostgresServer, folder: Path, *before: str) -> Iterator[Place]:
    """Yield the place of the contender's own data, which later rounds find as this one left it.

    `before` is put before the command of a system's own server.
    """
    if contender.store == "postgres":
        name = contender.key.replace("-", "_")
        if not postgres.psql(f"select 1 from pg_database where datname = '{name}'"):
            postgres.psql(f"create database {name}")
            if contender.system == "Absurd":
                _make_absurd(contender, postgres, name)
        assert postgres._process is not None
        yield Place(f"{postgres.url.removesuffix('postgres')}{name}{contender.query}", postgres._process.pid)
    elif contender.store == "sqlite":
        yield Place(f"sqlite:{folder / contender.key}.db{contender.query}", None)
    elif contender.store == "restate":
        with restate_server(contender, folder, *before) as found:
            yield found
    else:
        with temporal_server(contender, folder, *before) as found:
            yield found


def _make_absurd(contender: Contender, postgres: PostgresServer, database: str) -> None:
    path = f"{postgres._bin}{os.pathsep}{os.environ['PATH']}"  # for psql
    command = [str(contender.python.with_name("absurdctl")), "init", "-d", f"{postgres.url.removesuffix('postgres')}{database}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path})


@contextmanager
def restate_server(contender: Contender, folder: Path, *before: str) -> Iterator[Place]:
    ingress, admin, node, service = (free_port() for _ in range(4))
    (binary,) = (ENVIRONMENTS / contender.environment).glob("node_modules/@restatedev/restate-server-*/bin/restate-server")
    settings = {
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(node),
        "RESTATE_INGRESS__BIND_PORT": str(ingress),
        "RESTATE_ADMIN__BIND_PORT": str(admin),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
    }
    command = [str(binary), "--no-logo", "--node-name", "peers", "--base-dir", str(folder / "restate")]
    health = f"http://127.0.0.1:{admin}/health"
    with server([*before, *command], folder / "restate.log", health, settings):
        environment = {
            "RESTATE_ADMIN": f"http://127.0.0.1:{admin}",
            "RESTATE_SERVICE_PORT": str(service),
        }
        yield Place(f"http://127.0.0.1:{ingress}", None, environment)


@contextmanager
def temporal_server(contender: Contender, folder: Path, *before: str) -> Iterator[Place]:
    if given := os.environ.get("PEERS_TEMPORAL_ADDRESS"):  # a server that is running; its syncs are not seen
        yield Place(given, None)
        return
    port, http, metrics = (free_port() for _ in range(3))
    binary = os.environ.get("PEERS_TEMPORAL") or contender.python.with_name("temporal")
    command = [str(binary), "server", "start-dev", "--headless", "--log-level", "never", "--ip", "127.0.0.1"]
    command += ["--port", str(port), "--http-port", str(http), "--metrics-port", str(metrics)]
    command += ["--db-filename", str(folder / "temporal.db")]
    with server([*before, *command], folder / "temporal.log", f"http://127.0.0.1:{metrics}/metrics", {}):
        yield Place(f"127.0.0.1:{port}", None)


@contextmanager
def server(command: list[str], log: Path, health: str, settings: dict[str, str]) -> Iterator[None]:
    """Start a server, wait until it answers, and stop it at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **settings},
            cwd=log.parent,
            preexec_fn=dies_with_parent(),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # also what strace started
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(health: str) -> bool:
    try:
        with urlopen(health, timeout=2):
            return True
    except OSError:
        return False


def pinned(requirements: str) -> dict[str, str]:
    """Return the versions that a file of requirements pins."""
    lines = (HERE / "requirements" / f"{requirements}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)


def strace() -> str | None:
    return shutil.which("strace") if sys.platform == "linux" else None
