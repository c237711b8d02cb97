"""The installed stores, from the metadata of their distributions. None of them is imported."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Final

from ._output import console, write, write_json

GROUP: Final = "durable_core.stores"
FAMILY: Final = {
    "durable-file": ("file",),
    "durable-sqlite": ("sqlite",),
    "durable-postgres": ("postgres", "postgresql"),
    "durable-redis": ("redis", "rediss", "unix"),
    "durable-s3": ("s3",),
}
"""Our own distributions that serve stores. We suggest no others, because an unregistered name invites squatters."""


def stores(*, as_json: bool) -> None:
    """Print each scheme and its distribution, and those of our own that are not installed."""
    found = [*_installed()]
    served = {each["scheme"] for each in found}
    found += [
        {"scheme": scheme, "distribution": name, "version": None, "install": f"pip install {name}"}
        for name, schemes in FAMILY.items()
        for scheme in schemes
        if scheme not in served
    ]
    if as_json:
        for each in found:
            write_json(each)
    else:
        _draw(found)


def serving(scheme: str) -> str:
    """Return the distribution and version that serve a scheme, such as `durable-sqlite 0.1.0`."""
    return " and ".join(f"{each['distribution']} {each['version']}" for each in _installed() if each["scheme"] == scheme)


def _installed() -> Iterator[dict[str, Any]]:
    # An editable install and an old copy are one distribution.
    points = {(point.name, point.dist.name): point for point in reversed(tuple(entry_points(group=GROUP))) if point.dist}
    for (scheme, name), point in sorted(points.items()):
        assert point.dist is not None
        yield {"scheme": scheme, "distribution": name, "version": point.dist.version, "install": None}


def _draw(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ._text import harmless

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("SCHEME", "SERVED BY", "VERSION"):
        table.add_column(heading, overflow="fold")
    by_distribution: dict[tuple[str, str], list[str]] = {}
    for each in found:
        by_distribution.setdefault((each["distribution"], each["version"] or each["install"]), []).append(f"{each['scheme']}:")
    for (name, version), schemes in by_distribution.items():
        style = "dim" if version.startswith("pip ") else ""
        table.add_row(*(Text(harmless(cell), style) for cell in (" ".join(schemes), name, version)))
    console().print(table)
    schemes = [each["scheme"] for each in found if each["version"]]
    for scheme in sorted({scheme for scheme in schemes if schemes.count(scheme) > 1}):
        names = [each["distribution"] for each in found if each["scheme"] == scheme]
        write(f"\n{scheme}: is served by {' and '.join(names)}, so no store is opened by it: uninstall all but one")
