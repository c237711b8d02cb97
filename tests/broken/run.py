"""Break each guarantee on purpose and see its tests fail: `python -m tests.broken.run [--shard 1/4] [PART OF A NAME…]`.

Everything happens in a copy of the checkout, which is first seen to pass. A row counts as caught if each of its tests fails, as a
test does: an error before it, such as of an import, shows nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.broken.patches import PATCHES, Patch

ROOT = Path(__file__).parents[2]
COPIED = ("packages", "tests", "examples", "conftest.py", "pyproject.toml", "VERSION")
UNWANTED = shutil.ignore_patterns("__pycache__", "dist", ".*")


def copy_to(tree: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=UNWANTED)
        else:
            shutil.copy(ROOT / name, tree / name)


def run_tests(tree: Path, tests: Iterable[str]) -> tuple[int, int, int, str]:
    """Run tests on the tree; return how many ran, failed, and could not be run, and what pytest printed."""
    found = tree / "junit.xml"
    found.unlink(missing_ok=True)
    sources = os.pathsep.join(str(path) for path in sorted(tree.glob("packages/*/src")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", f"--junitxml={found}", *tests],
        cwd=tree,
        # Without stored bytecode: a file that is written twice within a second would be taken for the one before.
        env={**os.environ, "PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    suites = ElementTree.parse(found).getroot().iter("testsuite") if found.exists() else ()
    counts = [(int(suite.get(name, "0")) for name in ("tests", "failures", "errors")) for suite in suites]
    ran, failed, errors = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 1)
    return ran, failed, errors, done.stdout + done.stderr


def fault_of(patch: Patch, tree: Path) -> str | None:
    """Return why the row doesn't hold, or None if every test of it fails."""
    path = tree / patch.file
    text = path.read_text(encoding="utf-8")
    if (times := text.count(patch.old)) != 1:
        return f"its old text stands {times} times in {patch.file}, expected once"
    path.write_text(text.replace(patch.old, patch.new), encoding="utf-8", newline="\n")
    try:
        for test in patch.tests:
            _, failed, errors, output = run_tests(tree, [test])
            if errors:
                return f"{test} could not be run:\n{output[-3000:]}"
            if not failed:
                return f"{test} passes all the same"
    finally:
        path.write_text(text, encoding="utf-8", newline="\n")
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.broken.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help="a part of the names of rows; all rows unless given")
    parser.add_argument("--shard", default="1/1", help="which part of the rows, such as 2/4 for the second of four")
    given = parser.parse_args()
    number, shards = map(int, given.shard.split("/"))
    chosen = [patch for patch in PATCHES if not given.parts or any(part in patch.name for part in given.parts)]
    chosen = chosen[number - 1 :: shards]
    if not chosen:
        print(f"no name holds {' or '.join(given.parts)}; there are:", *(patch.name for patch in PATCHES), sep="\n  ")
        return 1
    with TemporaryDirectory(prefix="durable-broken-") as folder:
        tree = Path(folder).resolve()
        copy_to(tree)
        tests = dict.fromkeys(test for patch in chosen for test in patch.tests)
        ran, failed, errors, output = run_tests(tree, tests)
        if not ran or failed or errors:
            print(f"these tests must pass before anything is broken:\n{output[-5000:]}")
            return 1
        faults = 0
        for patch in chosen:
            began = time.monotonic()
            fault = fault_of(patch, tree)
            faults += fault is not None
            found = f"caught: {patch.name}" if fault is None else f"NOT CAUGHT: {patch.name}: {fault}"
            print(f"{time.monotonic() - began:5.1f} s {found}", flush=True)
        print(f"{len(chosen) - faults} of {len(chosen)} caught", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
