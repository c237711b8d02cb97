"""What every command is asked: which store, and whether as JSON."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from durable_core import OpenableStore

T = TypeVar("T")

_USUAL: Final = {"sqlite:durable.db": Path("durable.db"), "file:./runs": Path("runs")}
"""Stores that are taken where nobody names one, and what has to be there for that."""


class Asked:
    """The options that all commands share. Nothing of the library is imported before a store is opened."""

    def __init__(self, store: str | None, *, as_json: bool) -> None:
        self.as_json: Final = as_json
        self._store: Final = store

    @property
    def url(self) -> str:
        """The store's URL. Raises `UsageError` where none is named, or two could be meant."""
        if url := self._store or os.environ.get("DURABLE_STORE"):
            return url
        there = [url for url, path in _USUAL.items() if path.exists()]
        if len(there) == 1:
            return there[0]
        why = f"both {' and '.join(map(str, _USUAL.values()))} are here" if there else "there is no durable.db and no ./runs here"
        raise click.UsageError(f"which store? {why}: name one by --store or DURABLE_STORE, such as --store sqlite:durable.db")

    def command(self, name: str, *arguments: str, options: str = "") -> str:
        """Return a command as a shell takes it, to be pasted; it names the store if this one did."""
        from ._text import quoted

        named = [options, f"--store {self._shown_store()}" if self._store else ""]
        words = [quoted(each) for each in arguments]
        # An id that starts with a dash is none of the options.
        words = [*named, "--", *words] if any(each.startswith("-") for each in arguments) else [*words, *named]
        return " ".join(["durable", name, *(word for word in words if word)])

    def _shown_store(self) -> str:
        from ._text import quoted

        hides = self._store is None or "@" in self._store or "password" in self._store.lower()
        return "URL" if hides else quoted(str(self._store))

    def run(self, work: Callable[[OpenableStore], Awaitable[T]]) -> T:
        """Open the store, and run `work` with it to its end."""
        import asyncio

        from durable_core import open_store

        async def opened() -> T:
            async with open_store(self.url) as store:
                return await work(store)

        return asyncio.run(opened())


def on_store(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --store and --json, as an `Asked` that its function takes first."""
    from functools import wraps

    @click.option("--store", metavar="URL", help="The store, else DURABLE_STORE, else durable.db or ./runs.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    @wraps(fn)
    def asked(store: str | None, as_json: bool, **options: Any) -> Any:
        return fn(Asked(store or named_before(click.get_current_context()), as_json=as_json), **options)

    return asked


def named_before(ctx: click.Context) -> str | None:
    """Return the store that was named in front of the command."""
    store: str | None = ctx.find_root().params.get("store")
    return store
