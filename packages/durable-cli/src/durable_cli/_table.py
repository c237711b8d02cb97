"""Rows in columns, for any screen width: ids stay whole, and the last column takes the remaining space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.text import Text

_GAP: Final = 2
_LEAST: Final = 12  # screen columns that the last cell must have before ids get a line of their own

Cell = str | Text
"""A text with or without a style, already harmless."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], width: int, *, ids: int = 1) -> Iterator[Text]:
    """Lay out rows under their heads, as lines that are at most `width` wide unless ids are wider.

    The first `ids` cells of a row are never cut. If they are too wide, they get a line of their own.
    """
    cells = [[each if isinstance(each, Text) else Text(each) for each in row] for row in rows]
    cells.insert(0, [Text(head, style="dim") for head in heads])
    middle = [max(cell_len(row[at].plain) for row in cells) for at in range(ids, len(heads) - 1)]
    room = width - sum(middle) - _GAP * (len(heads) - 1) - _LEAST
    fitting = [[cell_len(each.plain) for each in row[:ids]] for row in cells]
    fitting = [row for row in fitting if sum(row) <= room] or [[0] * ids]
    of_ids = [max(column) for column in zip(*fitting, strict=True)]
    if sum(of_ids) > room:  # the widest of each are in different rows
        of_ids = [0] * ids
    widths = [*of_ids, *middle]
    for row in cells:
        names, rest = row[:ids], row[ids:]
        if any(cell_len(name.plain) > allowed for name, allowed in zip(names, of_ids, strict=True)):
            yield _line(names, [])
            names = [Text() for _ in names]
            if not any(cell.plain for cell in rest):
                continue
        line = _line([*names, *rest], widths)
        line.truncate(width, overflow="ellipsis")
        line.rstrip()
        yield line


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip_longest(cells, widths, fillvalue=0):
        assert isinstance(cell, Text)
        assert isinstance(width, int)
        line.append_text(cell)
        if cell is not cells[-1]:
            line.append(" " * (max(0, width - cell_len(cell.plain)) + _GAP))
    return line
