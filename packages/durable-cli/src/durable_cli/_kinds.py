"""The kinds of values that commands are given, and how a shell completes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_COMPLETED: Final = 100
_PLAIN: Final = re.compile(r"(?!-)[\w@%+=:,./-]+", re.ASCII)
"""What a shell takes as it is. Other names are not completed: in an id, `$(…)` would be run by who presses Enter."""


class JsonValue(click.ParamType[Any]):
    """A value given as JSON."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import json

        try:
            return json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is no JSON: {error}; a text needs its quotes, such as '\"yes\"'", param, ctx)


class Span(click.ParamType[timedelta]):
    """A length of time, such as `30d`, `12h`, `5m` or `10s`; a bare number is seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", value)
        if found is None:
            self.fail(f"{value!r} is no length of time; write 30d, 12h, 5m or 10s", param, ctx)
        try:
            return timedelta(seconds=float(found[1]) * _UNITS[found[2] or "s"])
        except OverflowError:
            self.fail(f"{value!r} is longer than a length of time can be", param, ctx)


class Moment(click.ParamType[datetime]):
    """A time in the past: `2026-03-29T09:00`, in the machine's zone unless it names one, or a span ago, such as `2h`."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            pass
        try:
            return datetime.now(UTC) - Span().convert(value, param, ctx)
        except (click.BadParameter, OverflowError):
            self.fail(f"{value!r} is no time; write 2026-03-29T09:00, or how long ago, such as 2h", param, ctx)


class _FromStore(click.ParamType[str]):
    """A name that a shell completes from the store; nothing where there is none, or where it can't be read."""

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """Return names; those that don't begin with `incomplete` do no harm."""
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ._asked import Asked, named_before

        async def find(store: Any) -> Iterable[str]:
            return await self.find(store, ctx, incomplete)

        try:
            found = Asked(ctx.params.get("store") or named_before(ctx), as_json=False).run(find)
        except Exception:  # a shell has nowhere to show it
            return []
        return [CompletionItem(name) for name in sorted(set(found)) if name.startswith(incomplete) and _PLAIN.fullmatch(name)]


class RunId(_FromStore):
    """The id of a run."""

    name = "RUN"

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        from durable_core.store import runs_of

        listing = runs_of(store)
        found: list[str] = []
        if listing is not None:
            async for run_id in listing.runs(incomplete):
                if not run_id.startswith("$"):
                    found.append(run_id)
                if len(found) == _COMPLETED:
                    break
        return found


class StepId(_FromStore):
    """The id of a step of the run that stands before it, as the argument `run_id`."""

    name = "STEP"

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        from durable_core.engine import heads_of

        # Behind an option the arguments are not parsed yet.
        run_id = ctx.params.get("run_id") or next(iter(ctx.args))
        heads = heads_of(await store.list(run_id))
        return [head.step_id for head in heads if not head.step_id.startswith("$")]


class FlowName(_FromStore):
    """The name of a flow of which there are runs."""

    name = "FLOW"

    async def find(self, store: Any, ctx: click.Context, incomplete: str) -> Iterable[str]:
        from durable_core import control

        return [run.flow async for run in control.runs(store, only_flows=True, limit=_COMPLETED) if run.flow is not None]
