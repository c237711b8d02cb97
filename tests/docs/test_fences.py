"""No Python block in the documentation may escape being run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")])
FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$", re.MULTILINE)
# What documentation may show besides Python, which is spelled exactly so: other spellings are passed over.
LANGUAGES = {"python", "console", "json", "text", "toml", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    """A fence is three backticks and a known language, with nothing after it."""
    fences = FENCE.findall(page.read_text(encoding="utf-8"))
    assert {ticks for ticks, _ in fences} <= {"```"}
    assert {language for _, language in fences[::2]} <= LANGUAGES
    assert {language for _, language in fences[1::2]} <= {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_is_skipped(page: Path) -> None:
    """There is no comment that would keep a block from being run."""
    assert "<!-- skip" not in page.read_text(encoding="utf-8")
