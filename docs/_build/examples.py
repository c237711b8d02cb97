"""Says at the top of a page that its examples build on each other, where they do.

`conftest.py` runs the Python blocks of a page in one namespace, and writes those that begin with a file's name to one folder.
"""

import re
import symtable
from collections.abc import Iterator
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# [a-z_]+\.py\n")
TITLE = re.compile(r"^# .*\n", re.MULTILINE)
SESSION = "The examples on this page build on each other: run them in order, in one Python session."
FOLDER = "Save each program under the name in its first line, all in one folder."


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Add below the title what a reader who copies the examples has to know."""
    notes = [note for note, is_needed in ((SESSION, builds(markdown)), (FOLDER, has_files(markdown))) if is_needed]
    if not notes:
        return markdown
    return TITLE.sub(lambda title: f"{title[0]}\n{' '.join(notes)}\n{{ .builds }}\n", markdown, count=1)


def has_files(markdown: str) -> bool:
    """Return True if the page shows several programs, which may import one another."""
    return sum(FILE.match(block) is not None for block in BLOCK.findall(markdown)) > 1


def builds(markdown: str) -> bool:
    """Return True if a block uses a name that only an earlier block of the page defines."""
    known: set[str] = set()
    for block in BLOCK.findall(markdown):
        if FILE.match(block):
            continue
        module = symtable.symtable(block, "block", "exec")
        own = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        if known & set(_globals(module)) - own:
            return True
        known |= own
    return False


def _globals(scope: symtable.SymbolTable) -> Iterator[str]:
    for symbol in scope.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or scope.get_type() == "module"):
            yield symbol.get_name()
    for inner in scope.get_children():
        yield from _globals(inner)
