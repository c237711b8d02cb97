"""What the distributions promise to installers."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
VERSION = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
NAMES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PROJECTS: dict[str, dict[str, Any]] = {
    name: tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text(encoding="utf-8"))["project"] for name in NAMES
}
DEPENDENCIES = {name: [Requirement(line) for line in distribution(name).requires or []] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_has_the_common_version_and_is_typed(name: str) -> None:
    """All distributions carry the version of the file VERSION, and their types."""
    assert distribution(name).version == VERSION
    assert files(name.replace("-", "_")).joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_describes_itself_as_its_siblings_do(name: str) -> None:
    """Links, licence and Pythons are alike on the index; the description and the keywords are for those who search."""
    project, core = PROJECTS[name], PROJECTS["durable-core"]
    for field in ("authors", "dynamic", "readme", "requires-python", "urls"):
        assert project[field] == core[field], field
    assert set(project["urls"]) == {"Documentation", "Source", "Issues", "Changelog"}
    assert "MIT" in project["license"].split(" AND ")
    assert len(project["description"]) <= 110
    assert {"asyncio", "durable execution", "workflow"} < set(project["keywords"])
    own = ("Environment :: ", "Framework :: Pydantic", "Topic :: ")
    alike = [[line for line in each["classifiers"] if not line.startswith(own)] for each in (project, core)]
    assert alike[0] == alike[1]
    assert {"Framework :: AsyncIO", "Programming Language :: Python :: 3.14", "Typing :: Typed"} < set(alike[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_page_on_the_index_can_be_read_alone(name: str) -> None:
    """It begins with its name, says how to install it and shows a program; its links lead to pages from anywhere."""
    text = (ROOT / "packages" / name / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\n")
    assert re.search(rf"^```console\n(pip install .*\n)*pip install '?{name}\b", text, re.MULTILINE)
    assert "```python\n" in text
    site = "https://durable-py.github.io/durable/latest/"
    links: list[str] = re.findall(r"\]\(([^)]+)\)", text)
    assert [url for url in links if not url.startswith("https://")] == []
    pages = [url.removeprefix(site) for url in links if url.startswith(site)]
    assert len(pages) >= 3
    for page in pages:
        assert any((ROOT / "docs" / file).is_file() for file in (f"{page}index.md", f"{page.rstrip('/')}.md")), page


@pytest.mark.parametrize("name", NAMES)
def test_siblings_are_required_at_the_common_version(name: str) -> None:
    """A distribution never meets an older core than the one it was tested with."""
    siblings = [requirement for requirement in DEPENDENCIES[name] if requirement.name in NAMES]
    assert {str(requirement.specifier) for requirement in siblings} <= {f">={VERSION}"}


@pytest.mark.parametrize("point", entry_points(group="durable_core.stores"), ids=lambda point: point.name)
def test_every_scheme_resolves_to_a_store(point) -> None:
    """What is registered for a URL scheme can be imported and made from a URL."""
    assert callable(point.load().from_url)


def test_core_requires_msgspec_alone_and_imports_no_backend() -> None:
    """Installing or importing core brings in no store's driver."""
    assert [requirement.name for requirement in DEPENDENCIES["durable-core"]] == ["msgspec"]
    program = "import sys, durable_core; print(*sorted({name.partition('.')[0] for name in sys.modules if 'durable' in name}))"
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert imported.split() == ["durable_core"]
