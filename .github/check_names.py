"""Refuses a release while a distribution's name belongs to somebody else on the package index: `nox -s names`.

A name is free, or it is ours: a wheel of the project links to this repository as its source. The index itself asks who
uploads; this says so before the first of the distributions is published and not in the middle. Takes the URL of another index.
"""

import sys
import tomllib
from email.parser import BytesHeaderParser
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from pypi_simple import NoSuchProjectError, PyPISimple

PROJECTS = [
    tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in sorted(Path("packages").glob("*/pyproject.toml"))
]


def main(*index: str) -> None:
    taken: list[str] = []
    with PyPISimple(*index) as client:
        for project in PROJECTS:
            name, ours = project["name"], project["urls"]["Source"]
            theirs = links_of(client, name)
            if theirs is None:
                print(f"{name}: free")
            elif ours in theirs:
                print(f"{name}: ours")
            else:
                print(f"{name}: not ours")
                taken.append(f"{name} links to {', '.join(theirs) or 'nothing'}, and ours link to {ours}")
    if taken:
        sys.exit(
            "These names belong to another project on the index, so nothing is published:\n  "
            + "\n  ".join(taken)
            + "\nAsk the owner for the name, or rename the distribution (CONTRIBUTING.md, Releasing)."
        )


def links_of(client: PyPISimple, name: str) -> list[str] | None:
    """Return the links of the project that has the name, or None if the name is free."""
    try:
        packages = client.get_project_page(name).packages
    except NoSuchProjectError:
        return None
    wheels = [package for package in packages if package.package_type == "wheel"]
    if not wheels:
        return []
    with TemporaryDirectory() as folder:
        wheel = Path(folder, wheels[-1].filename)
        client.download_package(wheels[-1], wheel)
        with ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = BytesHeaderParser().parsebytes(archive.read(name))
    return [link.partition(", ")[2] for link in metadata.get_all("Project-URL", [])]


if __name__ == "__main__":
    main(*sys.argv[1:])
