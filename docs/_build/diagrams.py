"""Puts drawn diagrams in the place of mermaid blocks, so that a page needs no script, and no network, to show them.

The block in the page is the source. Its drawing lies in `diagrams/`, carries a hash of the source, and is made by `nox -s diagrams`.
The colours in it are variables of the page's palette, so one drawing serves light and dark.
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

FOLDER = Path(__file__).with_name("diagrams")
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r'<div data-diagram="([^"]+)"></div>')


def digest(source: str) -> str:
    return sha256(source.encode()).hexdigest()[:16]


def path_of(page: str, number: int) -> Path:
    """Return where the drawing lies of a page's n-th block, such as `concepts-replay-1.svg`."""
    return FOLDER / f"{page.removesuffix('.md').replace('/', '-')}-{number}.svg"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leave a place where each block was, after checking that its drawing is there and is of this block."""
    count = 0

    def place(block: re.Match[str]) -> str:
        nonlocal count
        count += 1
        path = path_of(page.file.src_uri, count)
        if not path.exists() or f'data-source="{digest(block[1])}"' not in path.read_text(encoding="utf-8"):
            raise PluginError(f"{page.file.src_uri}: diagram {count} is not drawn as it stands there; run `nox -s diagrams`")
        return f'<div data-diagram="{path.name}"></div>'

    return BLOCK.sub(place, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Put the drawings in, when the search index has been made."""
    return _PLACE.sub(
        lambda place: f'<div class="diagram">{(FOLDER / place[1]).read_text(encoding="utf-8").strip()}</div>', output
    )
