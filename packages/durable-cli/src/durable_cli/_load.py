"""Finding an object by `MODULE:NAME`, imported from the current folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ._ending import REFUSED

if TYPE_CHECKING:
    from durable_core import Flow


def load_flow(spec: str) -> Flow[Any, Any]:
    """Return the flow `MODULE:FLOW`, which may be a blocking one. Raises `UsageError` if there is none."""
    from durable_core import Flow
    from durable_core.engine import asynchronous

    module, named = load(spec, "FLOW")
    found = asynchronous(named)
    if not isinstance(found, Flow):
        raise click.UsageError(f"{spec!r} is of type {type(found).__name__}, not decorated with @flow; {_flows_of(module)}")
    return found


def load(spec: str, what: str) -> tuple[Any, Any]:
    """Import the module and return it with the named object. Raises `UsageError` if the name doesn't exist.

    An error of the program itself shows its traceback, and ends the command.
    """
    from ._traceback import show

    path, colon, name = spec.partition(":")
    if not (path and colon and name) or path.startswith("."):
        raise click.UsageError(f"{spec!r} is not MODULE:{what}, such as refund:refund for `refund` in refund.py")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        with printing_to_stderr():
            module = import_module(path)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{path}.".startswith(f"{missing}."):
            raise click.UsageError(f"there is no module {missing!r} in {here}, nor is one installed") from None
        show(error)
        raise click.exceptions.Exit(REFUSED) from None
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise click.UsageError(f"module {path!r} has no {name!r}; {_flows_of(module)}") from None
    return module, found


def printing_to_stderr() -> AbstractContextManager[object]:
    """Send the program's output to stderr meanwhile, because stdout is for the command's own result."""
    return redirect_stdout(sys.stderr)


@contextmanager
def not_leaving() -> Iterator[None]:
    """Treat a `sys.exit` of the program as a failure, whatever its code, because the work was not done."""
    try:
        yield
    except SystemExit as left:
        raise click.ClickException(f"the program called sys.exit({left.code!r}) while it was running") from None


def _flows_of(module: ModuleType) -> str:
    from durable_core import Flow
    from durable_core.engine import asynchronous

    names = [name for name, each in vars(module).items() if not name.startswith("_") and isinstance(asynchronous(each), Flow)]
    return f"flows there: {', '.join(names[:20]) or 'none'}"
