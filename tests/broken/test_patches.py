"""The table of what is broken on purpose fits the code and the tests of today."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.broken.guarantees import PAGE, TABLE, rows_of, written
from tests.broken.patches import PATCHES, Patch
from tests.broken.run import ROOT


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_what_is_replaced_stands_there_once(patch: Patch) -> None:
    """A row names the one place that it breaks."""
    assert (ROOT / patch.file).read_text(encoding="utf-8").count(patch.old) == 1
    assert patch.new != patch.old


def test_names_are_unlike() -> None:
    """A name tells which row it is."""
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)


def test_every_test_exists(request: pytest.FixtureRequest) -> None:
    """A row names tests that pytest finds; it is asked for those that this session doesn't run anyway.

    Those of a session of its own are run there; of them the file is looked for, and the name in it.
    """
    here = {name for item in request.session.items for name in (item.nodeid, item.nodeid.partition("[")[0])}
    named = {test for patch in PATCHES for test in patch.tests}
    for test in (own := {test for test in named if test.startswith("tests/celery/")}):
        path, _, name = test.partition("::")
        assert name.partition("[")[0].rpartition("::")[2] in (ROOT / path).read_text(encoding="utf-8"), test
    if elsewhere := sorted(named - own - here):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *elsewhere]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_has_the_table_of_guarantees() -> None:
    """Every guarantee is broken by rows that are there, and the page has them: `python -m tests.broken.guarantees`."""
    page = PAGE.read_text(encoding="utf-8")
    assert all([*rows_of(guarantee)] for guarantees in TABLE.values() for guarantee in guarantees)
    assert written(page) == page
