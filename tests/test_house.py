"""The floors of durable-core: an import runs down or along, never up, and none runs in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

CORE: Final = Path(__file__).parents[1] / "packages" / "durable-core" / "src" / "durable_core"
FLOORS: Final = (
    ("__init__",),
    ("testing", "sync", "engine"),
    ("flow",),
    ("runner", "control"),
    ("_waiting",),
    ("_running",),
    ("_log",),
    ("stores", "_calls", "options"),
    ("store", "errors", "events"),
    ("record",),
    ("_values", "context"),
    ("_system", "clock"),
)
FLOOR_OF: Final = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES: Final = {
    ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__"): path for path in CORE.rglob("*.py")
}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports_of(tree: ast.AST, module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules of core that are imported anywhere in the module, but for what is imported for types alone."""
    package = module if path.name == "__init__.py" and module != "__init__" else module.rpartition(".")[0]
    for node in _nodes(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = [part for part in package.split(".") if part]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join(["durable_core", *parents, *([base] if base else [])])
            for alias in node.names:
                yield from _known(f"{base}.{alias.name}", node.lineno) or _known(base, node.lineno)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _known(alias.name, node.lineno)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node)


def _known(name: str, line: int) -> list[tuple[str, int]]:
    module = name.removeprefix("durable_core").lstrip(".") or "__init__"
    return [(module, line)] if name.startswith("durable_core") and module in MODULES else []


IMPORTS: Final = {
    module: [*imports_of(ast.parse(path.read_text(encoding="utf-8")), module, path)] for module, path in MODULES.items()
}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upward(module: str) -> None:
    """Each module stands in a room of a known floor, and imports only from its own floor and those below."""
    floor = FLOOR_OF[room_of(module)]
    upward = [f"{module}:{line} imports {other}" for other, line in IMPORTS[module] if FLOOR_OF[room_of(other)] > floor]
    assert not upward


def test_no_import_runs_in_a_circle() -> None:
    """The modules can be put in one order in which each imports only earlier ones; those inside functions count."""
    graph = {module: {other for other, _ in found} - {module} for module, found in IMPORTS.items()}
    order = [*TopologicalSorter(graph).static_order()]
    assert len(order) >= len(MODULES)


def test_the_rooms_drawn_for_newcomers_are_those_that_are_there() -> None:
    """CONTRIBUTING shows each room of core once."""
    text = (CORE.parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = [
        room
        for room in {room_of(module) for module in MODULES} - {"__init__"}
        if f"{room}/" not in text and f"{room}.py" not in text
    ]
    assert not missing
