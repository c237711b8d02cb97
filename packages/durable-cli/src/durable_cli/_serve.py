"""Serving a worker of the user's program: its runs, and its webhooks over HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib.util import find_spec
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

import click

from ._asked import Asked
from ._load import load, printing_to_stderr
from ._output import write, write_json
from ._text import harmless

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from durable_core import Store
    from durable_worker import Worker

HOST: Final = "127.0.0.1"
PORT: Final = 8000
_GRACE: Final = 5  # seconds for requests that are in progress at the end


def need(module: str, distribution: str, what: str) -> None:
    """Raise an error that says what to install, unless the module exists."""
    if find_spec(module) is None:
        raise click.ClickException(f"{what} needs {distribution}, which is not installed: pip install '{distribution}'")


def load_worker(spec: str) -> Any:
    """Return the object `MODULE:WORKER`, before any event loop exists. From then on, the log goes to stderr."""
    need("durable_worker", "durable-worker", "a worker")
    _, named = load(spec, "WORKER")
    log_to_stderr()
    return named


async def serve(asked: Asked, spec: str, named: Any, host: str | None, port: int | None) -> None:
    """Work until SIGTERM or SIGINT. Also answer webhooks, if the worker has any or an address was given."""
    async with _worker(asked, spec, named) as worker:
        if worker.paths or host is not None or port is not None:
            need("uvicorn", "durable-cli[serve]", "serving webhooks")
            with _listening(HOST if host is None else host, PORT if port is None else port) as listener:
                await _serve_both(worker, listener)
        else:
            await worker.serve()


async def sweep(asked: Asked, spec: str, named: Any) -> None:
    """Do one round, and show its results."""
    import msgspec

    with printing_to_stderr():
        async with _worker(asked, spec, named) as worker:
            report = await worker.sweep()
    if asked.as_json:
        write_json(report)
        return
    counts = {name: count for name, count in msgspec.structs.asdict(report).items() if count}
    write(", ".join(f"{count:,} {name}" for name, count in counts.items()) or "nothing was due")


@asynccontextmanager
async def _worker(asked: Asked, spec: str, named: Any) -> AsyncIterator[Worker]:
    """Make the named worker: it exists, or is made from flows or by a function of the store."""
    from durable_core import Flow, open_store
    from durable_core.engine import asynchronous
    from durable_worker import Worker

    if isinstance(named, Worker):
        if asked.is_named:
            raise click.UsageError(f"{spec!r} is a worker with a store of its own: leave out --store")
        async with _opened(named.store):
            yield named
        return
    flows = named if isinstance(named, list | tuple) else [named]
    is_flows = all(isinstance(asynchronous(each), Flow) for each in flows)
    if not is_flows and not callable(named):
        raise click.UsageError(
            f"{spec!r} is of type {type(named).__name__}: name a flow or a list of flows, a Worker, or a function of a store that"
            " returns a Worker"
        )
    async with open_store(asked.url) as store:
        made = Worker(store, flows) if is_flows else named(store)
        if isawaitable(made):
            made = await made
        if not isinstance(made, Worker):
            raise click.UsageError(f"{spec!r} returned {type(made).__name__!r}, not a durable_worker.Worker")
        yield made


def _opened(store: Store) -> AbstractAsyncContextManager[object]:
    """Open and close a store that the program only made."""
    from contextlib import nullcontext

    return store if isinstance(store, AbstractAsyncContextManager) else nullcontext()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address. Raises `ClickException` if that is impossible, before any run is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise click.ClickException(f"can't listen on {host}, port {port}: {error}") from None
    with listener:
        yield listener


async def _serve_both(worker: Worker, listener: socket.socket) -> None:
    """Serve the worker and its application. The application ends last, so that it accepts deliveries until the end."""
    server = _server(worker.app)
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    logging.getLogger("durable_cli").info("listening on http://%s:%d for %s", host, port, ", ".join((*worker.paths, "/healthz")))
    try:
        await worker.serve()
    finally:
        server.should_exit = True
        await answering


def _server(app: Starlette) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # they are the worker's

    quiet: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False}
    return Server(uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=_GRACE, **quiet))


def log_to_stderr() -> None:
    """Show what the library and the worker log, unless the program sets up logging itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Harmless("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Harmless(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record), keep_lines=True)
