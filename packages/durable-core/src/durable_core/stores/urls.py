"""The URL that chooses a store: its options, and what may be shown of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from durable_core.errors import StoreError

_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: `C:\runs` is a path
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")
_NAME: Final = re.compile(r"[\w-]+")
_DRIVE: Final = re.compile(r"/[A-Za-z]:(?:[/\\]|$)")


class StoreURL:
    """A store's URL, parsed. `repr()`, `str()` and errors show only its scheme, its host and the names of its options.

    Raises `StoreError` if `url` has no scheme, contains a `#` or bytes that are not UTF-8, or can't be parsed.
    """

    def __init__(self, url: str) -> None:
        from urllib.parse import parse_qsl, unquote, urlsplit  # a tenth of what importing the library would take

        if not isinstance(url, str):
            raise TypeError(f"a store's URL must be a str such as 'file:./runs', not {url!r}")
        match = _SCHEME.match(url)
        if match is None:
            raise StoreError(  # without the URL: it may be an address, and any part of it may be a secret
                "the store's URL has no scheme; begin it with one such as redis:// or postgresql://, or write sqlite: before the"
                " path of an SQLite file, as in sqlite:./runs.db, or file: before that of a folder, as in file:./runs"
            )
        self._text: Final = url
        self.scheme: Final = match["scheme"].lower()
        if "#" in url:
            raise StoreError(
                f"the URL that begins with '{self.scheme}:' contains a '#', which would end its path; percent-encode it as %23"
            )
        try:
            url.encode()
        except UnicodeEncodeError:  # its message contains the whole URL
            raise StoreError(
                f"the URL that begins with '{self.scheme}:' contains bytes that are not UTF-8; percent-encode them, such as %FF"
            ) from None
        try:
            self.parts: Final = urlsplit(url)
            self._host: Final = self.parts.netloc.rpartition("@")[2]
            if not all(map(_HOST.fullmatch, self._host.split(","))):
                raise ValueError
        except ValueError:
            # Not `from` it: urllib's message can hold the password.
            raise self._unreadable() from None
        self.query: Final = parse_qsl(self.parts.query, keep_blank_values=True)
        self.path: Final = unquote(self.parts.path)
        """The path, percent-decoded."""

    def options(self, known: Mapping[str, Callable[[str], Any]], *, also: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Convert the query parameters with the converters in `known`. Those in `also` belong to the driver and are skipped.

        Raises `StoreError` for an option that is in neither, is given twice, or is refused by its converter. A converter raises
        `ValueError` with a message that says what was expected, but doesn't repeat the value.
        """
        found: dict[str, Any] = {}
        for name, text in self.query:
            if name not in known:
                if name in also:
                    continue
                from difflib import get_close_matches

                names = sorted({*known, *also})
                hint = "".join(f" Did you mean {near!r}?" for near in get_close_matches(name, names, n=1))
                raise StoreError(f"unknown option {name!r} in {self}; known: {', '.join(names) or 'none'}.{hint}")
            if name in found:
                raise StoreError(f"option {name!r} is given twice in {self}")
            try:
                found[name] = known[name](text)
            except ValueError as error:
                raise StoreError(f"option {name!r} in {self}: {error}") from error
        return found

    def require_server(self) -> None:
        """Raise `StoreError` if a driver would take a part of the server's address for a path.

        That happens if no `//` follows the scheme, or if an `@` follows the host, as with a password that is not escaped. The
        query may contain an `@` if another one ends the user and password.
        """
        if not self._text.startswith("//", len(self.scheme) + 1):
            raise StoreError(f"{self} has no server; write {self.scheme}://host with two slashes")
        if "@" in self.parts.path or ("@" in self.parts.query and "@" not in self.parts.netloc):
            raise self._unreadable()

    def without(self, names: Mapping[str, object]) -> str:
        """Return the URL for the driver: with its secrets, and without the options in `names`."""
        from urllib.parse import urlencode

        # Not through `urlunsplit`, which turns `postgresql:///db` into `postgresql:/db`.
        kept = urlencode([(name, text) for name, text in self.query if name not in names])
        return self._text.partition("?")[0] + (kept and f"?{kept}")

    def __str__(self) -> str:
        if "@" in self.parts.path + self.parts.query:  # all before it may be a password that its owner forgot to escape
            return f"{self.scheme}:…"
        names = [name if _NAME.fullmatch(name) else "…" for name, _ in self.query]
        shown = f"{self.scheme}:{'//' if self._host else ''}{self._host}"
        if self.parts.path.strip("/"):
            shown += "/…" if self._host else "…"
        return shown + ("?" if names else "") + "&".join(f"{name}=…" for name in names)

    def _unreadable(self) -> StoreError:
        return StoreError(
            f"the URL that begins with '{self.scheme}:' can't be read; percent-encode special characters in a password"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def boolean(text: str) -> bool:
    """Convert an option that is `true` or `false`."""
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def integer(*, least: int = 0) -> Callable[[str], int]:
    """Make a converter for a whole number of at least `least`."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise ValueError(f"expected a whole number of at least {least}")
        return int(text)

    return convert


def seconds(text: str) -> float:
    """Convert a positive, finite number of seconds."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 0 < float(text) < 1e9:
        raise ValueError("expected a positive number of seconds")
    return float(text)


def local_path(url: StoreURL, *, example: str, advice: str) -> str:
    """Return the path of a file or folder of this machine, percent-decoded.

    Raises `StoreError` for a URL without a path, with `advice` on what to write, and for a URL of another machine. `example` is
    a path for messages.
    """
    from urllib.parse import unquote_to_bytes

    parts, scheme = url.parts, url.scheme
    machine = parts.netloc.rpartition("@")[2]
    name = (machine + parts.path).lstrip("/")
    if unquote_to_bytes(name).startswith(b"~"):
        # Only a shell expands it. Somebody who has a folder called '~' might remove it with `rm -rf ~`.
        literal = f"{scheme}:{'/' if parts.path.endswith('/' + name) else ''}./{name}"
        raise StoreError(
            f"{url}: '~' is not expanded; write the home folder out, as in '{scheme}:/home/ann/{example}',"
            f" or {literal!r} for a path of that name"
        )
    if parts.netloc not in ("", "localhost"):
        raise StoreError(f"{url} names the machine {machine!r}; write '{scheme}:./{machine}{parts.path}' or '{scheme}:///…'")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path:
        raise StoreError(f"{url} has no path; write {advice}")
    if "\0" in path:
        raise StoreError(f"{url} contains a NUL character, which a path can't")
    if os.name == "nt" and _DRIVE.match(path):  # file:///C:/runs
        return path[1:]
    return path
