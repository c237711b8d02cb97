"""The progress of a run that is driven here: a line for each step that ended, and the steps in progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

from ._asked import Asked
from ._output import error_console, say
from ._text import cut, harmless, moment, number, span

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from durable_core import StepEvent, StepRecord

_COLOURS: Final = {"done": "green", "failed": "red", "again": "yellow", "waits": "cyan", "replayed": "dim"}
_WORD: Final = 9  # columns
_UNDER_WAY: Final = 10
_MESSAGE: Final = 300


class Progress:
    """Writes a runner's events to stderr."""

    def __init__(self, run_id: str, asked: Asked) -> None:
        self._run_id: Final = run_id
        self._asked: Final = asked
        self._replayed = 0
        self._began: Final[dict[tuple[str, str], float]] = {}
        self._console: Console | None = None
        self.crash: BaseException | None = None
        """The error of the flow's own code, if it ended the run."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """On a terminal, show the steps in progress below the lines."""
        if not sys.stderr.isatty():
            yield
            self._tell_replayed()
            return
        from rich.live import Live

        self._console = error_console()
        live = Live(get_renderable=self._under_way, console=self._console, transient=True, refresh_per_second=8)
        try:
            with live:
                yield
            self._tell_replayed()
        finally:
            self._console = None

    def tell(self, event: StepEvent) -> None:
        """Write one event."""
        key = event.run_id, event.step_id
        if event.type == "step:replay":
            self._replayed += 1
        elif event.type == "step:start":
            self._tell_replayed()  # before what the step prints
            self._began.setdefault(key, monotonic())
        else:
            self._began.pop(key, None)
            if event.type == "run:crash" and event.run_id == self._run_id:
                self.crash = event.error
            if (told := self._told(event)) is not None:
                self._tell_replayed()
                self._write(*told)

    def _told(self, event: StepEvent) -> tuple[str, str] | None:
        """Return a word for a step's result, and the rest of the line."""
        step = self._step(event.run_id, event.step_id)
        record = event.record
        if event.type == "step:success" and record is not None:
            return "done", f"{step}  {span(record.duration)}"
        if event.type == "step:failure" and record is not None:
            return "failed", f"{step}  {span(record.duration)}  {cut(str(record.error), _MESSAGE)}"
        if event.type == "step:retry" and event.delay is not None:
            why = f"{type(event.error).__name__}: {event.error}"
            return "again", f"{step}  in {span(event.delay)}, after attempt {event.attempt}: {cut(why, _MESSAGE)}"
        if event.type == "step:wait" and record is not None and record.kind != "flow":  # a child is driven here
            return "waits", f"{step}  {how_to_help(record, self._asked)}".rstrip()
        return None

    def _step(self, run_id: str, step_id: str) -> str:
        return step_id if run_id == self._run_id else f"{run_id}: {step_id}"

    def _tell_replayed(self) -> None:
        if self._replayed:
            self._write("replayed", number(self._replayed, "step"))
            self._replayed = 0

    def _write(self, word: str, rest: str) -> None:
        if self._console is None:
            say(f"{word:<{_WORD}} {rest}")
        else:
            self._console.print(self._line(word, rest), soft_wrap=True)

    def _line(self, word: str, rest: str) -> Text:
        from rich.text import Text

        return Text.assemble((f"{word:<{_WORD}} ", _COLOURS.get(word, "")), harmless(rest))

    def _under_way(self) -> Text:
        from rich.text import Text

        now = monotonic()
        steps = [*self._began.items()]
        lines = [self._line("running", f"{self._step(*key)}  {span(now - began)}") for key, began in steps[:_UNDER_WAY]]
        if len(steps) > _UNDER_WAY:
            lines.append(self._line("", f"and {len(steps) - _UNDER_WAY:,} more"))
        return Text("\n", no_wrap=True, overflow="ellipsis", end="").join(lines)


def how_to_help(wait: StepRecord, asked: Asked) -> str:
    """Return how a wait ends: at a time, or with a command."""
    until = f"until {moment(wait.until)}" if wait.until is not None else ""
    if wait.kind not in ("approval", "event"):
        return until
    from ._steps import whose

    name, options = ("approve", whose(wait)) if wait.kind == "approval" else ("send", ["--value", "JSON"])
    command = asked.command(name, wait.run_id, wait.step_id, options=options)
    return f"{until}  ({command})".lstrip()
