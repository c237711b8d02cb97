"""Break each guarantee on purpose and see its tests fail: `python -m tests.broken.run [--shard 1/4] [PART OF A NAME…]`.

Everything happens in a copy of the checkout. First the tests of all rows run there unbroken; a row whose tests don't pass then is
not tried. A row counts as caught if each of its tests fails, as a test does: an error before it, such as of an import, shows
nothing.
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
from typing import NamedTuple
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


class Outcome(NamedTuple):
    """What came of running some tests."""

    passed: frozenset[str]
    """Tests as `key_of` names them."""
    failed: frozenset[str]
    errors: int
    """How many could not be run."""
    output: str
    """What pytest printed."""


def key_of(test: str) -> str:
    """Return a test's name as it stands in a report, from its id."""
    path, _, name = test.partition("::")
    return ".".join([path.removesuffix(".py").replace("/", "."), *name.split("::")])


def run_tests(tree: Path, tests: Iterable[str]) -> Outcome:
    """Run tests on the tree."""
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
    cases = [*ElementTree.parse(found).getroot().iter("testcase")] if found.exists() else []
    names = {case: f"{case.get('classname')}.{case.get('name')}" for case in cases}
    errors = {name for case, name in names.items() if case.find("error") is not None}
    failed = {name for case, name in names.items() if case.find("failure") is not None}
    passed = {*names.values()} - failed - errors
    return Outcome(frozenset(passed), frozenset(failed), len(errors) if cases else 1, done.stdout + done.stderr)


def fault_of(patch: Patch, tree: Path) -> str | None:
    """Return why the row doesn't hold, or None if every test of it fails."""
    path = tree / patch.file
    text = path.read_text(encoding="utf-8")
    if (times := text.count(patch.old)) != 1:
        return f"its old text stands {times} times in {patch.file}, expected once"
    path.write_text(text.replace(patch.old, patch.new), encoding="utf-8", newline="\n")
    try:
        for test in patch.tests:
            outcome = run_tests(tree, [test])
            if outcome.errors:
                return f"{test} could not be run:\n{outcome.output[-3000:]}"
            if not outcome.failed:
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
        unbroken = run_tests(tree, tests)
        passing = unbroken.passed | {name.partition("[")[0] for name in unbroken.passed}
        passing -= {name.partition("[")[0] for name in unbroken.failed}
        if not_passing := {test for test in tests if key_of(test) not in passing} | {*unbroken.failed}:
            print(f"these don't pass before anything is broken, and their rows are not tried: {sorted(not_passing)}")
            print(unbroken.output[-5000:], flush=True)
        faults = 0
        for patch in chosen:
            if any(key_of(test) not in passing for test in patch.tests):
                print(f"NOT TRIED: {patch.name}", flush=True)
                faults += 1
                continue
            began = time.monotonic()
            fault = fault_of(patch, tree)
            faults += fault is not None
            found = f"caught: {patch.name}" if fault is None else f"NOT CAUGHT: {patch.name}: {fault}"
            print(f"{time.monotonic() - began:5.1f} s {found}", flush=True)
        print(f"{len(chosen) - faults} of {len(chosen)} caught", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
