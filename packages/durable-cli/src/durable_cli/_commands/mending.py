"""Commands that continue a run, stop it, or fork it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import FlowName, JsonValue, Moment, RunId, RunState, StepId

from .deciding import BY, YES

_REASON: Final = click.option("--reason", metavar="TEXT", help="The reason, for readers of the log.")
_STUCK: Final = ("failed",)
_NOT_ENDED: Final = ("waiting", "running", "interrupted", "crashed", "parked")


def _on_many(states: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that select many runs, with a default for their status."""

    def give(fn: Callable[..., Any]) -> Callable[..., Any]:
        told = f"For many runs: those with this status; may be repeated; by default {', '.join(states)}."
        for option in (
            YES,
            click.option("--since", type=Moment(), help="For many runs: those that began since."),
            click.option("--status", "states", multiple=True, type=RunState(), help=told),
            click.option("--flow", type=FlowName(), help="For many runs: all of this flow."),
        ):
            fn = option(fn)
        return fn

    return give


def _act(
    asked: Asked,
    act: Any,
    usual: Sequence[str],
    run_id: str | None,
    step_id: str | None = None,
    *,
    flow: str | None,
    states: Sequence[Any],
    since: datetime | None,
    yes: bool,
    reason: str | None,
    by: str,
) -> None:
    """Act on the named run, or on all selected ones."""
    from durable_cli._each import Chosen
    from durable_cli._mend import Signed, act_on_many, act_on_one

    if (run_id is not None) == bool(flow or states or since):
        raise click.UsageError(f"name a run, or select many with --flow, --status or --since: durable {act} refund-1004")
    if run_id is None:
        act_on_many(asked, act, Chosen(flow, [*(states or usual)], since), Signed(by, reason), yes=yes)
    else:
        asked.run(lambda store: act_on_one(store, asked, act, run_id, step_id, Signed(by, reason)))


@click.command()
@click.argument("run_id", metavar="[RUN]", type=RunId(), required=False)
@click.argument("step_id", metavar="[STEP]", type=StepId(), required=False)
@_on_many(_STUCK)
@_REASON
@BY
@on_store
def retry(asked: Asked, run_id: str | None, step_id: str | None, **options: Any) -> None:
    """Continue a run that failed, crashed, is parked or was interrupted.

    Without STEP, reopens the steps whose failures ended the run; failures that its flow caught stay. The run continues when a
    worker takes it, or when it is run again. To retry many runs, select them with --flow, --status and --since: they are listed,
    and retried after confirmation. A run that is refused doesn't stop the others.

    \b
    Example:
      durable retry refund-1003 --reason "the bank is open again"
      durable retry --flow refund --status failed --since 1d
    """
    _act(asked, "retry", _STUCK, run_id, step_id, **options)


@click.command()
@click.argument("run_id", metavar="[RUN]", type=RunId(), required=False)
@_on_many(_NOT_ENDED)
@_REASON
@BY
@on_store
def cancel(asked: Asked, run_id: str | None, **options: Any) -> None:
    """Ask a run to stop; its flow can undo its work.

    A run that is working notices within two seconds, on S3 within twenty. A run without a process notices when it is run again.
    A run that has not begun ends at once. Cancelling again changes nothing. To cancel many runs, select them with --flow,
    --status and --since: they are listed, and cancelled after confirmation.

    \b
    Example:
      durable cancel order-7 --reason "she changed her mind"
      durable cancel --flow import --status waiting
    """
    _act(asked, "cancel", _NOT_ENDED, run_id, **options)


@click.command()
@click.argument("run_id", metavar="RUN", type=RunId())
@click.argument("step_id", metavar="STEP", type=StepId())
@click.option("--value", type=JsonValue(), help="The step's value: JSON, @FILE or -; by default null.")
@click.option("--reason", metavar="TEXT", required=True, help="The reason, for readers of the log.")
@BY
@on_store
def resolve(asked: Asked, run_id: str, step_id: str, value: Any, reason: str, by: str) -> None:
    """Set the outcome of a step that failed or was interrupted.

    The value is what the step would have returned. It is not checked against the type that the flow expects.

    \b
    Example:
      durable resolve refund-1003 pay-back --value '"transfer-7003"' --reason paid
    """
    from durable_cli._give import resolve

    asked.run(lambda store: resolve(store, run_id, step_id, value, reason=reason, by=by, as_json=asked.as_json))


@click.command()
@click.argument("run_id", metavar="RUN", type=RunId())
@click.argument("new", metavar="NEW")
@click.option("--before", metavar="STEP", type=StepId(), required=True, help="The first step that runs again.")
@BY
@on_store
def fork(asked: Asked, run_id: str, new: str, before: str, by: str) -> None:
    """Begin a new run with the outcomes of another run before a step.

    That step and all later ones run again, with the same input. The original run stays as it is.

    \b
    Example:
      durable fork refund-1003 refund-1003-b --before pay-back
    """
    from durable_cli._mend import fork

    asked.run(lambda store: fork(store, asked, run_id, new, before, by))


COMMANDS: Final[Mapping[str, click.Command]] = {"retry": retry, "resolve": resolve, "cancel": cancel, "fork": fork}
