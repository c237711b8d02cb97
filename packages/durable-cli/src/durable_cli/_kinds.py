"""The types of commands' values, and how a shell completes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_COMPLETED: Final = 100
_LOOKED_AT: Final = 1000  # runs, for the names of flows
_LONGEST: Final = timedelta(days=36_500)
_SHOWN: Final = 200  # characters of a value that is refused
_PLAIN: Final = re.compile(r"(?!-)[\w@%+=:,./-]+", re.ASCII)
"""Characters that a shell takes as they are. Other names are not completed, because a shell would run `$(…)` in an id."""


class JsonValue(click.ParamType[Any]):
    """A value given as JSON, or its source: `-` for standard input, `@file` for a file."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import json

        if not isinstance(value, str):
            return value
        text = value
        try:
            if value == "-" or value.startswith("@"):
                with click.open_file(value.removeprefix("@"), encoding="utf-8") as file:
                    text = file.read()
            return json.loads(text, parse_constant=_refuse_constant)
        except OSError as error:
            self.fail(f"{value!r} can't be read: {error.strerror}", param, ctx)
        except (ValueError, RecursionError) as error:
            shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
            self.fail(f"{shown!r} is not JSON: {error}; a string needs quotes, such as '\"yes\"'", param, ctx)


class JsonObject(JsonValue):
    """The input of a flow: a JSON object of its arguments by name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not isinstance(found, dict):
            self.fail(
                'the input of a flow must be a JSON object of its arguments by name, such as \'{"order": "1004"}\'', param, ctx
            )
        return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


class Span(click.ParamType[timedelta]):
    """A length of time, such as `30d`, `12h`, `5m` or `10s`. A number without a unit is seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", value)
        if found is None:
            self.fail(f"{value!r} is not a length of time; write 30d, 12h, 5m or 10s", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2] or "s"]
        if seconds > _LONGEST.total_seconds():
            self.fail(f"{value[:_SHOWN]!r} is longer than {_LONGEST.days}d, a hundred years", param, ctx)
        return timedelta(seconds=seconds)


class Moment(click.ParamType[datetime]):
    """A time: `2026-03-29T09:00`, in the machine's zone unless it names one; or a span ago, such as `2h`, or `ahead` from now."""

    name = "WHEN"

    def __init__(self, *, ahead: bool = False) -> None:
        self._ahead = ahead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            pass
        try:
            span = Span().convert(value, param, ctx)
            return datetime.now(UTC) + (span if self._ahead else -span)
        except click.BadParameter:
            how = "in how long" if self._ahead else "how long ago"
            self.fail(f"{value!r} is not a time; write 2026-03-29T09:00, or {how}, such as 2h", param, ctx)


class RunState(click.ParamType[str]):
    """The status of a run."""

    name = "STATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from durable_core.control import RUN_STATES

        if value not in RUN_STATES:
            self.fail(f"{value!r} is not one of {', '.join(RUN_STATES)}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from durable_core.control import RUN_STATES

        return [CompletionItem(state) for state in RUN_STATES if state.startswith(incomplete)]


class InStore(click.ParamType[str]):
    """A name that a shell completes from the store."""

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """Return some names with this beginning."""
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ._asked import Asked, named_before

        asked = Asked(ctx.params.get("store") or named_before(ctx), as_json=False)
        try:
            found = asked.run(lambda store: self.find(store, ctx, incomplete))
        except Exception:  # a shell can't show it
            return []
        return [CompletionItem(name) for name in sorted({*found}) if name.startswith(incomplete) and _PLAIN.fullmatch(name)]


class RunId(InStore):
    """The id of a run."""

    name = "RUN"

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        from durable_core.store import runs_of

        found: list[str] = []
        if (listing := runs_of(store)) is not None:
            async for run_id in listing.runs(incomplete):
                if not run_id.startswith("$"):
                    found.append(run_id)
                if len(found) == _COMPLETED:
                    break
        return found


class StepId(InStore):
    """The id of a step of the run that was named before; with a kind, only waits of that kind, such as `approval`."""

    name = "STEP"

    def __init__(self, waits: str | None = None) -> None:
        self._waits = waits

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        # After an option, the arguments are not parsed yet.
        run_id = ctx.params.get("run_id") or next(iter(ctx.args))
        steps = {record.step_id: record for record in await store.list(run_id)}
        wanted = [step for step in steps.values() if self._waits is None or (step.kind, step.status) == (self._waits, "waiting")]
        return [step.step_id for step in wanted if not step.step_id.startswith("$")]


class FlowName(InStore):
    """The name of a flow of runs in the store."""

    name = "FLOW"

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        from durable_core.store import flows_of

        index = flows_of(store)
        return [] if index is None else [flow.name for flow in await index.flows(limit=_LOOKED_AT)]
