"""No block in the documentation may escape being run."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")])
FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```([a-z]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([a-z_]+\.py)\n")
# What documentation may show besides Python, which is spelled exactly so: other spellings are passed over.
LANGUAGES = {"bash", "console", "ini", "json", "mermaid", "python", "sql", "text", "toml", "yaml"}
# `console` is shown and not run: what installs, sets up a terminal, or runs everything, such as these very tests.
SHOWN = ("export", "moto_server", "nox", "pip", "pre-commit", "python -m pip", "python examples/")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_every_block_says_what_it_is(page: Path) -> None:
    """A fence is three backticks and a known language, with nothing after it, at the start of its line."""
    fences = FENCE.findall(page.read_text(encoding="utf-8"))
    assert {ticks for ticks, _ in fences} <= {"```"}
    assert {language for _, language in fences[::2]} <= LANGUAGES
    assert {language for _, language in fences[1::2]} <= {""}
    assert not re.search(r"^ +```", page.read_text(encoding="utf-8"), re.MULTILINE)


@each_page
def test_no_block_is_skipped(page: Path) -> None:
    """There is no comment that would keep a block from being run."""
    assert not re.search(r"<!--+\s*(skip|clear|invisible)", page.read_text(encoding="utf-8"))


@each_page
def test_commands_that_can_run_do(page: Path) -> None:
    """Only what installs or tests is shown without being run."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    lines = [line for language, block in blocks if language == "console" for line in block.splitlines()]
    assert [line for line in lines if not line.startswith(SHOWN)] == []


@each_page
def test_every_file_is_used(page: Path) -> None:
    """A Python block that is written to a file is run by a command below, imported by such a file, or named by a setting."""
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    for index, (language, block) in enumerate(blocks):
        if language == "python" and (file := FILE.match(block)):
            name, module = file[1], file[1].removesuffix(".py")
            later = [text for kind, text in blocks[index + 1 :] if kind == "bash" or FILE.match(text)]
            imported = re.compile(rf"^(import|from) {module}\b| {module}:\w", re.MULTILINE)  # the command says `shop:refund`
            is_run = any(name in text or imported.search(text) for text in later)
            assert is_run or re.search(rf'^[\w ]+= ?"?{module}"?$', text, re.MULTILINE), name


@each_page
def test_json_is_json(page: Path) -> None:
    """What is shown as JSON can be read as such."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "json":
            json.loads(block)
