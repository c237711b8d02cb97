"""The URL that chooses a store: its options, and what may be shown of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from durable_core.errors import StoreError

_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: `C:\runs` is a path
# A password with an unescaped / ? or #: text that is no port after the colon, and an @ behind what ends the host.
_CUT_SHORT: Final = re.compile(r"[^:/?#]+://[^/?#@]*:(?![0-9]*(?:[/?#]|$))[^/?#@\]]*[/?#].*@", re.DOTALL)
_SECRET: Final = re.compile(r"pass|pwd|secret|token|key|sig|auth|cred", re.IGNORECASE)


class StoreURL:
    """A store's URL, split; `repr()` and `str()` show it without passwords.

    Raises `StoreError` where `url` has no scheme or can't be split.
    """

    def __init__(self, url: str) -> None:
        if not isinstance(url, str):
            raise TypeError(f"a store's URL must be a str such as 'file:./runs', not {url!r}")
        match = _SCHEME.match(url)
        if match is None:
            raise _without_scheme(url)
        self._text: Final = url
        self.scheme: Final = match["scheme"].lower()
        try:
            self.parts: Final[SplitResult] = urlsplit(url)
            if _CUT_SHORT.match(url):
                raise ValueError
        except ValueError:
            # Not `from` it: urllib's message can hold the password.
            raise StoreError(f"{self} is not a URL; percent-encode what is special in a user name or password") from None
        self.query: Final = parse_qsl(self.parts.query, keep_blank_values=True)

    def options(self, known: Mapping[str, Callable[[str], Any]], *, also: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Convert the query parameters by `known`; those in `also` belong to the driver and are left to `without`.

        Raises `StoreError` for an option that is neither, given twice, or refused by its converter with a `ValueError`.
        """
        found: dict[str, Any] = {}
        for name, text in self.query:
            if name not in known:
                if name in also:
                    continue
                names = sorted({*known, *also})
                near = get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                listed = ", ".join(names) if names else "none"
                raise StoreError(f"unknown option {name!r} in {self}; known: {listed}.{hint}")
            if name in found:
                raise StoreError(f"option {name!r} is given twice in {self}")
            try:
                found[name] = known[name](text)
            except ValueError as error:
                if _SECRET.search(name):
                    raise StoreError(f"option {name} in {self} is not as expected") from None
                raise StoreError(f"option {name}={text!r} in {self}: {error}") from error
        return found

    def refuse_options(self) -> None:
        """Raise `StoreError` if there is any option, or more than the scheme."""
        self.options({})
        if self.parts.netloc or self.parts.path:
            raise StoreError(f"{self} takes no path; write '{self.scheme}:'")

    def without(self, names: Mapping[str, object]) -> str:
        """Return the URL, secrets included, less the options in `names`: what the driver gets."""
        # Not through `urlunsplit`, which turns `postgresql:///db` into `postgresql:/db`.
        base, _, fragment = self._text.partition("#")
        kept = urlencode([(name, text) for name, text in self.query if name not in names])
        return base.partition("?")[0] + (kept and f"?{kept}") + (fragment and f"#{fragment}")

    @property
    def path(self) -> str:
        """The path, percent-decoded."""
        return unquote(self.parts.path)

    def __str__(self) -> str:
        return redacted(self._text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def redacted(url: str) -> str:
    """Return `url` with its password, and every option that looks like one, as `***`."""
    # A password that holds @ : / ? or # unescaped is one that its owner forgot to escape: hide as far as it may reach.
    url = re.sub(r"(?s)((?://|^[^/?#:]+:/?)[^/?#:]*):.*@", r"\1:***@", url)
    return re.sub(r"(?<=[?&#])[^&]*", lambda option: _redacted_option(option[0]), url)


def _redacted_option(option: str) -> str:
    for name in re.finditer(r"(?:^|(?<=[;#]))[^=;#]*(?==)", option):  # a ; may part two options, or be part of a password
        if _SECRET.search(unquote(name[0])):
            return f"{option[: name.end()]}=***"
    return option


def _without_scheme(url: str) -> StoreError:
    # Of `u:secret@host` nothing tells where the secret begins but the colon, and nothing where it ends but the last @.
    shown = re.sub(r"(?s):.*@", ":***@", redacted(url))
    if "@" in url:
        advice = "begin it with one such as redis:// or postgresql://, or with file: for a path"
    elif url.startswith("~"):
        advice = "for a folder of run logs write 'file:' and the path, with the home folder written out"
    else:
        advice = f"for a folder of run logs write {'file:' + (shown or './runs')!r}"
    return StoreError(f"{shown!r} has no scheme; {advice}")


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
