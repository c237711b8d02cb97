"""Commands that ask for runs, and run them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import JsonObject, Moment, RunId

_INPUT: Final = "The flow's arguments by name: a JSON object, @FILE or -."


@click.command()
@click.argument("flow", metavar="MODULE:FLOW")
@click.argument("run_id", metavar="RUN")
@click.option("--input", "given", type=JsonObject(), default="{}", show_default=False, help=_INPUT)
@click.option("--at", type=Moment(ahead=True), help="The earliest start: a time, or a span ahead, such as 2h.")
@on_store
def start(asked: Asked, flow: str, run_id: str, given: Mapping[str, Any], at: datetime | None) -> None:
    """Start a run without running it here: a worker takes it up.

    The module is imported from the current folder, because it has the flow's name and the types of its input. The same run and
    input again change nothing; other input is refused.

    \b
    Example:
      durable start refund:refund refund-1006 --input '{"order_id": "1006"}'
    """
    from durable_cli._load import load_flow
    from durable_cli._run import start

    found = load_flow(flow)
    asked.run(lambda store: start(store, asked, found, run_id, given, at), makes_store=True)


@click.command()
@click.argument("flow", metavar="MODULE:FLOW")
@click.argument("run_id", metavar="RUN", type=RunId())
@click.option("--input", "given", type=JsonObject(), help=f"{_INPUT} A run that has begun keeps its input.")
@on_store
def run(asked: Asked, flow: str, run_id: str, given: Mapping[str, Any] | None) -> None:
    """Run or continue a flow here, and print its result.

    Steps show on stderr as they happen, and so does what the program prints; the result is on stdout, as JSON. A run that waits
    for longer than its flow's wait_limit is suspended: then the exit code is 0 without a result, and stderr says what it waits
    for. With --json, the object is the run's status in any case. Exit code 1: it failed, was cancelled, crashed or is parked.
    After Ctrl-C, run it again: what is recorded stays.

    \b
    Example:
      durable run refund:refund refund-1006 --input '{"order_id": "1006"}'
    """
    from durable_cli._load import load_flow, not_leaving
    from durable_cli._run import run

    found = load_flow(flow)
    again = asked.command("run", flow, run_id)
    with not_leaving():
        asked.run(lambda store: run(store, asked, found, run_id, given, again), makes_store=True)


@click.command()
@click.argument("worker", metavar="MODULE:WORKER")
@click.option("--host", metavar="ADDRESS", help="The address for webhooks; by default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port; by default 8000.")
@on_store
def serve(asked: Asked, worker: str, host: str | None, port: int | None) -> None:
    """Run a worker: start, resume and finish runs, and answer webhooks, until SIGTERM or Ctrl-C.

    WORKER is a flow or a list of flows, for a worker on --store; a function of a store that returns a Worker; or a Worker that
    has its store. If it has webhooks, or with --port or --host, it serves HTTP: the webhooks and /healthz. A stop lets running
    steps end and hands all runs to other workers; a second stop doesn't wait. It needs durable-worker, and durable-cli[serve]
    for HTTP.

    \b
    Example:
      durable serve refund:refund
    """
    import asyncio

    from durable_cli._load import not_leaving
    from durable_cli._serve import load_worker, serve

    named = load_worker(worker)
    with not_leaving():
        asyncio.run(serve(asked, worker, named, host, port))


@click.command()
@click.argument("worker", metavar="MODULE:WORKER")
@on_store
def sweep(asked: Asked, worker: str) -> None:
    """Run everything that can continue once, and return; for cron and timers.

    Prints the number of runs by result. WORKER is the same as for serve. It needs durable-worker.

    \b
    Example:
      durable sweep refund:refund
    """
    import asyncio

    from durable_cli._load import not_leaving
    from durable_cli._serve import load_worker, sweep

    named = load_worker(worker)
    with not_leaving():
        asyncio.run(sweep(asked, worker, named))


@click.command()
@click.argument("url", metavar="[URL]", required=False)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="An address of this machine only.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="The port; 0 takes a free one.")
@click.option("--by", metavar="NAME", help="Who decides on the page; by default the system's user.")
@on_store
def web(asked: Asked, url: str | None, host: str, port: int, by: str | None) -> None:
    """Serve a web page where you see and decide runs, until Ctrl-C.

    It prints a link that opens the page once, in one browser on this machine, with all rights. URL is the store, and overrides
    --store. It needs durable-web[serve]. If other people need the page, mount it into an application that knows its users.

    As JSON, one object: url, the link.

    \b
    Example:
      durable web sqlite:durable.db
    """
    from durable_cli._web import serve_page

    serve_page(asked if url is None else Asked(url, as_json=asked.as_json), host, port, by)


COMMANDS: Final[Mapping[str, click.Command]] = {"start": start, "run": run, "serve": serve, "sweep": sweep, "web": web}
