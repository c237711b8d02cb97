"""The options of every command: the store, and JSON output."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from durable_core import OpenableStore

T = TypeVar("T")

_USUAL: Final = {"sqlite:durable.db": Path("durable.db"), "file:./runs": Path("runs")}
"""The default stores, and the paths that must exist for them."""
_LOCAL: Final = ("file", "sqlite")
"""The schemes whose path is one of this machine."""


class Asked:
    """The options that all commands share. The library is not imported before a store is opened."""

    def __init__(self, store: str | None, *, as_json: bool) -> None:
        self.as_json: Final = as_json
        self._store: Final = store

    @property
    def is_named(self) -> bool:
        """True if a store was given with --store."""
        return bool(self._store)

    @property
    def url(self) -> str:
        """The store's URL. Raises `UsageError` if none is given, or if two defaults exist."""
        if url := self._store or os.environ.get("DURABLE_STORE"):
            return url
        there = [url for url, path in _USUAL.items() if path.exists()]
        if len(there) == 1:
            return there[0]
        why = f"both {' and '.join(map(str, _USUAL.values()))} are here" if there else "there is no durable.db and no ./runs here"
        raise click.UsageError(f"which store? {why}: give one with --store or DURABLE_STORE, such as --store sqlite:durable.db")

    @property
    def shown_url(self) -> str:
        """The store's URL for a message: with its path, unless it may contain a secret."""
        from durable_core import StoreURL

        return str(StoreURL(self.url)) if _may_hold_secret(self.url) else self.url

    def command(self, name: str, *names: str, options: Sequence[str] = ()) -> str:
        """Return a command to type next, on the same store. A URL that may contain a secret is not shown again."""
        from ._text import quoted

        url = self._store
        if url:
            options = [*options, "--store", "URL" if _may_hold_secret(url) else url]
        # Names that begin with a dash come after the dashes that end the options.
        words = [*options, "--", *names] if any(each.startswith("-") for each in names) else [*names, *options]
        return " ".join(map(quoted, ["durable", name, *words]))

    def run(self, work: Callable[[OpenableStore], Awaitable[T]], *, makes_store: bool = False) -> T:
        """Open the store, and run `work` with it to its end. Raises `NotFound` if the store must exist and does not."""
        import asyncio

        from durable_core import open_store

        async def opened() -> T:
            try:
                store = open_store(self.url)
                if not makes_store:
                    _check_exists(self.url)
                async with store:
                    return await work(store)
            except Exception as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # Ctrl-C, which a driver took for its own timeout
                    raise asyncio.CancelledError from error
                raise

        return asyncio.run(opened())


def _may_hold_secret(url: str) -> bool:
    return "@" in url or "?" in url


def _check_exists(url: str) -> None:
    """Raise `NotFound` if the store of a valid URL would be made on this machine. Its path is probably mistyped."""
    from durable_core import NotFound, StoreURL
    from durable_core.stores.urls import local_path

    parsed = StoreURL(url)
    if parsed.scheme in _LOCAL:
        path = Path(local_path(parsed, example="", advice="")).absolute()
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"there is no store at {path}: correct its path, or make the store by a command that brings runs, such as"
                " `durable start`"
            ) from None


def on_store(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --store and --json, as an `Asked`, the first argument of its function."""
    from functools import wraps

    @click.option("--store", metavar="URL", help="The store; by default DURABLE_STORE, durable.db or ./runs.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on each line.")
    @wraps(fn)
    def asked(store: str | None, as_json: bool, **options: Any) -> Any:
        return fn(Asked(store or named_before(click.get_current_context()), as_json=as_json), **options)

    return asked


def named_before(ctx: click.Context) -> str | None:
    """Return the store that was given before the command's name."""
    store: str | None = ctx.find_root().params.get("store")
    return store
