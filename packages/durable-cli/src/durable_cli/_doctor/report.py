"""The doctor's output: each check as it ends, and a summary of what is safe and what is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from rich.table import Table
from rich.text import Text

from durable_cli._asked import Asked
from durable_cli._ending import REFUSED, fail
from durable_cli._output import console, write_json
from durable_cli._stores import serving
from durable_cli._text import cut, harmless
from durable_core import StoreURL

from .examining import examine
from .finding import Check, Finding, Verdict

_WORDS: Final[Mapping[Verdict, Text]] = {
    "safe": Text("safe", "green"),
    "unsafe": Text("NOT SAFE", "bold red"),
    "note": Text("note", "yellow"),
}
_COLUMNS: Final = (8, 19)
"""The widths of the verdict and the title."""
_LONGEST: Final = 1_000
_NOT_TRIED: Final = "a power cut, a full disk, a failover: the doctor can't cause them"


def doctor(asked: Asked, *, processes: int) -> None:
    """Check the store, and exit with code 1 if something is not safe."""
    report = JsonReport() if asked.as_json else Report(asked.url)
    with report:
        left = asyncio.run(examine(asked.url, begin=report.begin, tell=report.tell, rivals=processes))
    if left:
        fail(f"these runs of the doctor could not be removed: {' '.join(left)}")
    if not report.end():
        sys.exit(REFUSED)


class JsonReport(ExitStack):
    """Prints one JSON object for each check."""

    def __init__(self) -> None:
        super().__init__()
        self._found: Final[list[tuple[Check, Finding]]] = []

    def begin(self, check: Check) -> None:
        """A check begins."""

    def tell(self, check: Check, finding: Finding) -> None:
        """Show what a check found."""
        self._found.append((check, finding))
        self._show(check, finding)

    def end(self) -> bool:
        """Return True if everything is safe."""
        return all(finding.verdict != "unsafe" for _, finding in self._found)

    def _show(self, check: Check, finding: Finding) -> None:
        write_json(finding)


class Report(JsonReport):
    """Prints lines for people."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._console: Final = console()
        self._url: Final = url

    def begin(self, check: Check) -> None:
        if not self._found:
            store = StoreURL(self._url)
            about = f"Checks {store} ({serving(store.scheme)})."
            self._row((), Text(harmless(about)))
            self._row((), Text("It writes runs of its own and removes them, in ten to thirty seconds."))
            self._console.print()
        if self._console.is_terminal:
            self.enter_context(self._console.status(Text(check.title)))

    def end(self) -> bool:
        promises = [check.promise for check, finding in self._found if check.promise and finding.verdict == "safe"]
        dangers = [
            f"{cut(finding.says, _LONGEST)}; so {check.danger}" for check, finding in self._found if finding.verdict == "unsafe"
        ]
        self._list("Safe:", "green", promises)
        self._list("Not safe:", "bold red", dangers)
        self._list("Not tried:", "", [_NOT_TRIED] if promises else ())
        return super().end()

    def _show(self, check: Check, finding: Finding) -> None:
        self.close()  # the check has ended
        self._row(_COLUMNS, _WORDS[finding.verdict], Text(check.title), Text(cut(finding.says, _LONGEST)))

    def _list(self, heading: str, style: str, points: Sequence[str]) -> None:
        if points:
            self._console.print()
            self._row((), Text(heading, style))
        for point in points:
            self._row((1,), Text("-"), Text(point))

    def _row(self, widths: Sequence[int], *cells: Text) -> None:
        """Print cells side by side. The last cell gets the rest of the line, and wraps."""
        row = Table.grid(padding=(0, 2, 0, 0))
        for width in widths:
            row.add_column(width=width)
        row.add_column(overflow="fold")
        row.add_row(*cells)
        self._console.print(row)
