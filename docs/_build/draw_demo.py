"""Draws the recording on the front page from a real run of that page's program, `order.py`: `nox -s picture`.

The program runs in a terminal. Every line is its output, or the line that a shell prints when a process was killed. The lines appear
in order. A reader who asked for less motion gets the last frame.
"""

import os
import pty
import re
import signal
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
PROGRAM = re.compile(r"^```python\n(# order\.py\n.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ["python order.py --crash", "python order.py"]
COLUMNS, WIDTH, HEIGHT = 34, 8.4, 24
# Seconds from one line to the next: people read the output, and see what kills the program.
PAUSE = 0.9
THEMES = {
    "light": {"ground": "#f3f6f6", "frame": "#c9d6d5", "prompt": "#566669", "command": "#24363a", "output": "#24363a", "killed": "#b3261e"},
    "dark": {"ground": "#182528", "frame": "#2f4548", "prompt": "#9fb0af", "command": "#ffffff", "output": "#dbe6e5", "killed": "#ff9d94"},
}


def record() -> list[tuple[str, str]]:
    """Return the lines of the terminal, each with its style."""
    program = PROGRAM.search((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert program is not None
    lines = []
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("order.py").write_text(program[1], encoding="utf-8")
        for command in COMMANDS:
            output = bytearray()

            def read(descriptor: int, output: bytearray = output) -> bytes:
                data = os.read(descriptor, 65536)
                output.extend(data)
                return data

            status = pty.spawn([sys.executable, *command.split()[1:]], read)
            lines.append(("command", command))
            lines += [("output", line) for line in output.decode().replace("\r", "").splitlines()]
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL
                lines.append(("killed", "Killed"))
        os.chdir(ROOT)
    return lines


def draw(lines: list[tuple[str, str]], theme: str) -> str:
    colors = THEMES[theme]
    width, height = round(COLUMNS * WIDTH) + 32, len(lines) * HEIGHT + 56
    rows = []
    for number, (style, text) in enumerate(lines):
        y, delay = 62 + number * HEIGHT, number * PAUSE
        prompt = f'<tspan fill="{colors["prompt"]}">$ </tspan>' if style == "command" else ""
        bold = ' font-weight="700"' if style in ("command", "killed") else ""
        length = (len(text) + 2 * bool(prompt)) * WIDTH
        rows.append(
            f'<text x="16" y="{y}" textLength="{length:.1f}" fill="{colors[style]}"{bold}'
            f' style="animation-delay:{delay:.1f}s">{prompt}{escape(text)}</text>'
        )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t">
<title id="t">A program charges a card and is killed. The same command again ships, and does not charge again.</title>
<style>
text {{ font: 14px ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre;
  animation: appear 0.2s both; }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{colors["ground"]}" stroke="{colors["frame"]}"/>
<g fill="{colors["frame"]}"><circle cx="20" cy="20" r="5"/><circle cx="37" cy="20" r="5"/><circle cx="54" cy="20" r="5"/></g>
{chr(10).join(rows)}
</svg>
"""


if __name__ == "__main__":
    terminal = record()
    for theme in THEMES:
        (ROOT / "docs" / "assets" / f"demo-{theme}.svg").write_text(draw(terminal, theme), encoding="utf-8")
