"""What every page of the documentation must have, read from the sources and from the configuration alone."""

import re
import runpy
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OTHERS = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("packages/*/README.md")]
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_NAV = re.compile(r"^ +- (?:.*: )?([\w/-]+\.md)$", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


@each_page
def test_a_page_says_what_it_is_about(page: Path) -> None:
    """A page has a description that a search engine can show."""
    assert 40 <= len(_description(page)) <= 200, _description(page)


def test_no_two_pages_say_the_same_of_themselves() -> None:
    """Each page's description is its own."""
    assert len({_description(page) for page in PAGES}) == len(PAGES)


@each_page
def test_a_page_is_in_the_navigation(page: Path) -> None:
    """The navigation names each page once."""
    named = _NAV.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert named.count(page.relative_to(DOCS).as_posix()) == 1


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A link within the project leads to a file that is there, and to a heading that is in it."""
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target) or anchor.startswith("durable_"), link


@each_page
def test_lines_of_prose_hold_no_leftovers(page: Path) -> None:
    """Nothing unfinished is published."""
    assert not re.search(r"\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b", page.read_text(encoding="utf-8"), re.IGNORECASE)


def _description(page: Path) -> str:
    front = _FRONT.match(page.read_text(encoding="utf-8"))
    assert front is not None, f"{page} has no front matter"
    found: Any = re.search(r"^description: (.+)$", front[1], re.MULTILINE)
    assert found is not None, f"{page} has no description"
    return str(found[1])


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize(
    ("blocks", "notes"),
    [
        (["import asyncio\n\ndone = 1\n", "print(done)\n"], ["SESSION"]),
        (["store = 1\n", "def use(store):\n    return store\n"], []),
        (["store = 1\n", "store = 2\nprint(store)\n"], []),
        (["# first.py\na = 1\n", "# second.py\nfrom first import a\n"], ["FOLDER"]),
    ],
    ids=["a name of an earlier block", "a parameter of that name", "a block that defines it anew", "two programs"],
)
def test_a_page_says_that_its_examples_build_on_each_other(blocks: list[str], notes: list[str]) -> None:
    """The site adds that below the title, and only where it is so."""
    examples: Any = runpy.run_path(str(DOCS / "_build" / "examples.py"))
    page = "# Title\n\nText.\n" + "".join(f"\n```python\n{block}```\n" for block in blocks)
    shown = examples["on_page_markdown"](page)
    assert [note for note in ("SESSION", "FOLDER") if examples[note] in shown.partition("Text.")[0]] == notes
