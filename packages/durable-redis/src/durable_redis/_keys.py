"""The names of keys. All keys of a run are in one hash slot."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from durable_core.errors import StoreError
from durable_core.record import check_id

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_GLOB: Final = re.compile(r"([*?\[\]\\])")


class Keys:
    """Names keys, such as `prefix:{run}:log`. Escapes braces in a run's id, so that they can't end the hash tag early."""

    def __init__(self, prefix: str) -> None:
        if not prefix or not prefix.isprintable() or "{" in prefix or "}" in prefix:
            raise StoreError(
                f"prefix {prefix!r} can't begin a key: expected printable characters without braces, such as 'durable'"
            )
        self._prefix: Final = prefix
        self.flows: Final = f"{prefix}:flows"

    def log(self, run_id: str) -> str:
        return f"{self._prefix}:{{{run_id.translate(_ESCAPES)}}}:log"

    def lock(self, run_id: str) -> str:
        return f"{self._prefix}:{{{run_id.translate(_ESCAPES)}}}:lock"

    def wakeups(self, flow: str) -> str:
        return f"{self._prefix}:{{{flow.translate(_ESCAPES)}}}:wakeups"

    def pattern(self, run_prefix: str) -> str:
        """Return the glob for the log keys of all runs with this prefix."""
        start = f"{self._prefix}:{{{run_prefix.translate(_ESCAPES)}"
        return _GLOB.sub(r"\\\1", start) + "*}:log"

    def run_id(self, log_key: str | bytes) -> str | None:
        """Return the id of the run that has this log key. None if the key is not the key of a log."""
        try:
            name = log_key if isinstance(log_key, str) else log_key.decode()
            run_id = check_id("run_id", unquote(name[len(self._prefix) + 2 : -len("}:log")], errors="strict"))
        except ValueError:
            return None
        return run_id if self.log(run_id) == name else None
