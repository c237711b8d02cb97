"""What the built files hold: `nox -s build` gives it each sdist and wheel. A plain `pytest` has nothing built."""

import re
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

VERSION = Path("VERSION").read_text(encoding="utf-8").strip()
SOURCE = r"(?:.+/)?\w[\w.-]*\.(?:py|typed|html|css|js|svg|txt)"
SDIST = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
WHEEL = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


def check(path: str) -> None:
    """Exit unless the file holds its package, its description and its licence, and nothing else."""
    package = Path(path).name.partition("-")[0]
    root = f"{package}-{VERSION}"
    if path.endswith(".whl"):
        with ZipFile(path) as wheel:
            held = set(wheel.namelist())
        needed = {f"{root}.dist-info/{name}" for name in WHEEL} | {f"{package}/py.typed"}
        allowed, source = needed | {f"{root}.dist-info/entry_points.txt"}, package
    else:
        with tarfile.open(path) as sdist:
            held = {member.name for member in sdist if member.isfile()}
        needed = {f"{root}/{name}" for name in SDIST} | {f"{root}/src/{package}/py.typed"}
        allowed, source = needed | {f"{root}/.gitignore"}, f"{root}/src/{package}"  # hatchling adds that one
    if missing := needed - held:
        sys.exit(f"{path} lacks {', '.join(sorted(missing))}")
    if odd := {name for name in held - allowed if not re.fullmatch(f"{re.escape(source)}/{SOURCE}", name) or "/tests/" in name}:
        sys.exit(f"{path} holds {', '.join(sorted(odd))}, which no package needs")


for path in sys.argv[1:]:
    check(path)
