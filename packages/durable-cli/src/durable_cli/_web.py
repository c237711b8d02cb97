"""The page of durable-web, served on this machine."""

from __future__ import annotations

import sys

import click

from ._asked import Asked
from ._output import write, write_json
from ._serve import need


def serve_page(asked: Asked, host: str, port: int, by: str | None) -> None:
    """Serve the page until Ctrl-C, and print the link that opens it."""
    need("durable_web", "durable-web[serve]", "the page")
    need("uvicorn", "durable-web[serve]", "serving the page")
    from durable_web import serve

    def tell(link: str) -> None:
        if asked.as_json:
            write_json({"url": link})
        else:
            write(f"The page is at {link}\nThe link opens it once. Ctrl-C ends it.")
        sys.stdout.flush()

    try:
        asked.run(lambda store: serve(store, host=host, port=port, by=by, ready=tell), makes_store=True)
    except ValueError as error:  # an address that others can reach
        raise click.UsageError(str(error)) from None
