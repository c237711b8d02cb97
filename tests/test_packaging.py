"""What the distributions promise to installers."""

import subprocess
import sys
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
VERSION = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
NAMES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
DEPENDENCIES = {name: [Requirement(line) for line in distribution(name).requires or []] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_has_the_common_version_and_is_typed(name: str) -> None:
    """All distributions carry the version of the file VERSION, and their types."""
    assert distribution(name).version == VERSION
    assert files(name.replace("-", "_")).joinpath("py.typed").is_file()


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
