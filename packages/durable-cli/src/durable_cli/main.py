"""The command `durable`. Its subcommands are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click

from ._ending import PipeClosed, ending

SECTIONS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "Look": {"looking": ("runs", "show", "watch", "wait", "why", "pending")},
    "Decide": {"deciding": ("approve", "reject", "send")},
    "Fix": {"mending": ("retry", "resolve", "cancel", "fork")},
    "Run": {"running": ("start", "run", "serve", "sweep", "web")},
    "Keep": {"keeping": ("copy", "export", "import", "clean"), "checking": ("stores", "doctor", "check")},
}
"""The commands by purpose, and the modules of `_commands` that declare them."""


@contextmanager
def _pipe() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:  # which click takes for exit code 1
        raise PipeClosed from error


class Durable(click.Group):
    """The group of all commands. A command is imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for modules in SECTIONS.values() for names in modules.values() for name in names]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for modules in SECTIONS.values():
            for module, names in modules.items():
                if name in names:
                    commands: Mapping[str, click.Command] = import_module(f"._commands.{module}", __package__).COMMANDS
                    return commands.get(name)
        return None

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _pipe():
            return super().make_context(*args, **extra)  # which prints what --help says

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in (names := self.list_commands(ctx)) and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], names, 1)
            ctx.fail(f"there is no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _pipe():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, modules in SECTIONS.items():
            names = [name for several in modules.values() for name in several]
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(section):
                formatter.write_dl([(name, each.get_short_help_str(90)) for name, each in commands.items() if each] or [("", "")])


@click.group(cls=Durable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--store", metavar="URL", help="The store; may also come after the command.")
@click.version_option(package_name="durable-cli", prog_name="durable", message="%(prog)s %(version)s")
def durable(store: str | None) -> None:
    """See the runs of a store, decide what waits for you, and repair what went wrong.

    Give the store with --store or DURABLE_STORE, such as sqlite:durable.db. By default it is durable.db or ./runs, if one exists.

    \b
    Exit codes:
      0 done, 1 refused or failed, 2 wrong usage, 3 not found, 4 timed out

    \b
    Example:
      durable runs --status failed --since 1d
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default the program's own. Raises `SystemExit` if it didn't succeed."""
    with ending():
        if code := durable(args, prog_name="durable", standalone_mode=False):  # of an `Exit`, which click catches
            raise click.exceptions.Exit(code)
