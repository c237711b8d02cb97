"""Every public name stands on a page of the reference."""

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.name for path in ROOT.glob("packages/*/src/*") if (path / "__init__.py").is_file())
MODULES = [*PACKAGES, "durable_core.control", "durable_core.sync", "durable_core.testing"]
_SHOWN = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def names_shown() -> Iterator[tuple[str, str]]:
    """Name what the pages show, each with its package: one object, or all that a module has."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for path in _SHOWN.findall(page.read_text(encoding="utf-8")):
            found = pkgutil.resolve_name(path)
            names = getattr(found, "__all__", vars(found)) if isinstance(found, ModuleType) else [path.rpartition(".")[2]]
            module = max((each for each in MODULES if f"{path}.".startswith(f"{each}.")), key=len)
            yield from ((module, name) for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_is_complete(module: str) -> None:
    """What a package exports is documented."""
    shown = {name for package, name in names_shown() if package == module}
    found = import_module(module)
    assert {name for name in found.__all__ if not isinstance(getattr(found, name), ModuleType)} - shown == set()
