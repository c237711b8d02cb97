"""Commands by which a person decides, or tells a run what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import JsonValue, RunId, StepId
from durable_cli._question import system_user

BY: Final = click.option("--by", metavar="NAME", default=system_user, show_default="the system's user", help="Who acts.")
YES: Final = click.option("--yes", "-y", is_flag=True, help="Don't ask.")


def _on_approval(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments and options of a decision."""
    for option in (
        YES,
        click.option("--value", type=JsonValue(), help="The value with your changes, for the flow: JSON, @FILE or -."),
        click.option("--reason", metavar="TEXT", help="The reason, for readers of the log."),
        BY,
        click.argument("step_id", metavar="STEP", type=StepId("approval")),
        click.argument("run_id", metavar="RUN", type=RunId()),
    ):
        fn = option(fn)
    return fn


def _decide(asked: Asked, approves: bool, run_id: str, step_id: str, by: str, reason: str | None, value: Any, yes: bool) -> None:
    from durable_cli._decide import Vote, decide

    decide(asked, Vote(run_id, step_id, approves, by, reason, value), yes=yes)


@click.command()
@_on_approval
@on_store
def approve(asked: Asked, **vote: Any) -> None:
    """Approve what a run asks people.

    Shows what you are about to decide, and asks for confirmation. The name is recorded, not authenticated. The same decision
    again changes nothing; another decision is refused, with who decided before and when.

    \b
    Example:
      durable approve refund-1004 approve-refund --by alice --reason "checked"
    """
    _decide(asked, True, **vote)


@click.command()
@_on_approval
@on_store
def reject(asked: Asked, **vote: Any) -> None:
    """Reject what a run asks people; one rejection decides.

    Shows what you are about to decide, and asks for confirmation.

    \b
    Example:
      durable reject refund-1004 approve-refund --reason "a duplicate"
    """
    _decide(asked, False, **vote)


@click.command()
@click.argument("run_id", metavar="RUN", type=RunId())
@click.argument("step_id", metavar="STEP", type=StepId("event"))
@click.option("--value", type=JsonValue(), help="The event's value: JSON, @FILE or -; by default null.")
@click.option("--error", metavar="TEXT", help="Report that it failed, or withdraw a pending approval.")
@on_store
def send(asked: Asked, run_id: str, step_id: str, value: Any, error: str | None) -> None:
    """Send an event to a run, before it waits for the event or while it does.

    The run need not exist yet, but the store must. The same value again changes nothing; another value is refused.

    \b
    Example:
      durable send order-7 packed --value '{"parcels": 2}'
      durable send order-7 paid --error "the card was declined"
    """
    from durable_cli._give import send

    if error is not None and value is not None:
        raise click.UsageError("give an event either --value or --error, not both")
    asked.run(lambda store: send(store, run_id, step_id, value, error, as_json=asked.as_json))


COMMANDS: Final[Mapping[str, click.Command]] = {"approve": approve, "reject": reject, "send": send}
