"""Draws every mermaid block of the documentation: `nox -s diagrams -- path/to/mermaid.js`.

The argument is a script that defines `mermaid`, such as `dist/mermaid.tiny.js` of the npm package `@mermaid-js/tiny`.
"""

import re
import sys
from pathlib import Path

from diagrams import BLOCK, FOLDER, digest, path_of
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1]
# Set over what mermaid computes itself, so that only variables of the page's palette are left.
CSS = """
.node rect, .node polygon, .node path, .node circle, .actor, .labelBox, .note { fill: var(--diagram-fill) !important;
  stroke: var(--diagram-stroke) !important; stroke-width: 1.5px !important; }
.alert > rect, .alert > polygon, .alert > path { fill: var(--diagram-alert) !important; stroke: var(--diagram-alert-stroke) !important; }
.edgePath path, .flowchart-link, .messageLine0, .messageLine1, .actor-line, .loopLine { stroke: var(--diagram-line) !important; }
.marker, .marker path, .arrowheadPath, marker path { fill: var(--diagram-line) !important; stroke: var(--diagram-line) !important; }
text, tspan, .label text, .messageText, .actor > tspan, .noteText, .loopText, .labelText { fill: var(--diagram-text) !important;
  stroke: none !important; font-family: var(--md-text-font-family, system-ui), sans-serif !important; }
.messageText { paint-order: stroke; stroke: var(--md-default-bg-color) !important; stroke-width: 6px !important; }
.edgeLabel rect, .edgeLabel .label rect, .labelBkg, .background { fill: var(--md-default-bg-color) !important; opacity: 1 !important; }
"""
SETTINGS = {
    "startOnLoad": False,
    "theme": "base",
    "themeCSS": CSS,
    "fontFamily": "system-ui, sans-serif",
    "htmlLabels": False,
    "deterministicIds": True,
    "flowchart": {"htmlLabels": False, "curve": "basis", "padding": 12, "nodeSpacing": 28, "rankSpacing": 36, "diagramPadding": 2},
    "sequence": {"useMaxWidth": True, "actorMargin": 40, "mirrorActors": False},
}


def main(mermaid: Path, chromium: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    drawn = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=mermaid)
        page.evaluate("settings => mermaid.initialize(settings)", SETTINGS)
        for source in sorted(DOCS.rglob("*.md")):
            name = source.relative_to(DOCS).as_posix()
            for number, block in enumerate(BLOCK.finditer(source.read_text(encoding="utf-8")), start=1):
                path = path_of(name, number)
                draw = "async ([id, source]) => (await mermaid.render(id, source)).svg"
                svg = page.evaluate(draw, [f"diagram-{path.stem}", block[1]])
                svg = re.sub(r'<style>(?!#).*?</style>|<!--.*?-->| data-points="[^"]*"', "", svg, flags=re.DOTALL)
                path.write_text(svg.replace("<svg ", f'<svg data-source="{digest(block[1])}" ', 1) + "\n", encoding="utf-8")
                drawn.add(path)
        browser.close()
    for stale in {*FOLDER.glob("*.svg")} - drawn:
        stale.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
