"""Draws the picture on the front page from a real run of `examples/settle_orders.py`: `nox -s picture`.

Every character comes from the program's output in a terminal, and appears in the order in which it was printed, if not as fast. A
reader who asked for less motion gets the last frame.
"""

import os
import pty
import re
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COMMAND = "python examples/settle_orders.py"
COLUMNS, WIDTH, HEIGHT = 80, 6.6, 17
SECONDS = 9.5
THEMES = {
    "light": {
        "ground": "#f3f6f6", "frame": "#c9d6d5", "": "#24363a", "1": "#24363a", "2": "#566669", "31": "#b3261e", "32": "#1b6b3a",
        "33": "#8a4b00",
    },
    "dark": {
        "ground": "#182528", "frame": "#2f4548", "": "#dbe6e5", "1": "#ffffff", "2": "#9fb0af", "31": "#ff9d94", "32": "#9adba8",
        "33": "#ffcf8f",
    },
}  # fmt: skip


class Piece(NamedTuple):
    """Some characters of one colour, where they stand, and the line of the output that they are of."""

    row: int
    column: int
    text: str
    style: str
    line: int


def record() -> list[str]:
    """Return the lines that the demo prints to a terminal."""
    os.environ.update(TERM="xterm", COLUMNS="200")
    os.environ.pop("NO_COLOR", None)
    output: list[bytes] = []

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        output.append(data)
        return data

    os.chdir(ROOT)  # so that the program is called as readers call it
    status = pty.spawn([sys.executable, *COMMAND.split()[1:]], read)
    if status:
        raise SystemExit(f"the demo ended with status {status}")
    return b"".join(output).decode().replace("\r", "").rstrip("\n").split("\n")


def pieces(lines: list[str]) -> list[Piece]:
    """Cut the lines into pieces of one colour, wrapped as a terminal does."""
    found = [Piece(0, 0, "$ ", "2", 0), Piece(0, 2, COMMAND, "1", 0)]
    row = 1
    for number, line in enumerate(lines, start=1):
        column, style = 0, ""
        for token in re.split(r"(\x1b\[\d+m)", line):
            if token.startswith("\x1b"):
                style = token[2:-1].replace("0", "", 1) if token == "\x1b[0m" else token[2:-1]
                continue
            for words in re.finditer(r"\S+(?: {1,5}\S+)*", token):
                at, text = column + words.start(), words[0]
                while text:
                    room = COLUMNS - at % COLUMNS
                    found.append(Piece(row + at // COLUMNS, at % COLUMNS, text[:room], style, number))
                    text, at = text[room:], at + len(text[:room])
            column += len(token)
        row += 1 + max(0, column - 1) // COLUMNS
    return found


def draw(found: list[Piece], theme: str) -> str:
    colors = THEMES[theme]
    last = max(piece.line for piece in found)
    rows = 1 + max(piece.row for piece in found)
    width, height = round(COLUMNS * WIDTH) + 32, rows * HEIGHT + 52
    spans = []
    for piece in found:
        delay = SECONDS * piece.line / (last + 1)
        x, y = 16 + piece.column * WIDTH, 50 + piece.row * HEIGHT
        bold = ' font-weight="700"' if piece.style in ("1", "31") else ""
        spans.append(
            f'<text x="{x:.1f}" y="{y}" textLength="{len(piece.text) * WIDTH:.1f}" fill="{colors.get(piece.style, colors[""])}"{bold}'
            f' style="animation-delay:{delay:.2f}s">{escape(piece.text)}</text>'
        )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t">
<title id="t">A run of ten steps is killed twice, started again each time, and ends with every effect there once.</title>
<style>
text {{ font: 11px ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre;
  animation: appear 0.2s both; }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{colors["ground"]}" stroke="{colors["frame"]}"/>
<g fill="{colors["frame"]}"><circle cx="20" cy="18" r="5"/><circle cx="37" cy="18" r="5"/><circle cx="54" cy="18" r="5"/></g>
{chr(10).join(spans)}
</svg>
"""


if __name__ == "__main__":
    terminal = pieces(record())
    for theme in THEMES:
        (ROOT / "docs" / "assets" / f"demo-{theme}.svg").write_text(draw(terminal, theme), encoding="utf-8")
