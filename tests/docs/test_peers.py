"""The page that compares speeds shows the figures of one run, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.peers import page, syncs
from benchmarks.peers.contenders import CONTENDERS


@pytest.mark.parametrize("path", page.expected(), ids=lambda path: path.name)
def test_the_page_shows_the_figures_of_the_last_run(path: Path) -> None:
    """The page and its pictures are what `python -m benchmarks.peers --page` makes of result.json."""
    assert path.read_text(encoding="utf-8") == page.expected()[path]


def test_every_contender_is_in_the_figures() -> None:
    """A contender that was not measured is named with the reason."""
    result = json.loads(page.RESULT.read_text(encoding="utf-8"))
    for one in CONTENDERS:
        assert result["contenders"][one.key]["rounds"] or one.environment in result["missing"]


def test_the_text_around_the_figures_has_none_of_its_own() -> None:
    """What is written by hand names no measured time or rate, which the next run would make wrong."""
    text = re.sub(r"<!-- from the figures.*?until here -->", "", page.PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"\d (ms a step|steps a second|runs a second)", text)


def test_a_traced_sync_counts_where_it_returned(tmp_path: Path) -> None:
    """A sync counts between two steps if it returned after the first one's function and before the second one's began."""
    trace = tmp_path / "trace"
    trace.write_text(
        "17 100.500000 fdatasync(3)    = 0 (DELAYED) <0.020000>\n"
        "18 101.100000 fsync(3 <unfinished ...>\n"
        "18 102.600000 <... fsync resumed>)    = 0 (DELAYED) <1.500000>\n"
        "19 103.000000 fdatasync(4)    = -1 EIO (Input/output error) <0.020000>\n",
        encoding="utf-8",
    )
    assert syncs.ends(trace) == [pytest.approx(100.52), pytest.approx(102.6)]
    steps = [(100.0, 100.1), (101.0, 101.05), (102.0, 102.1), (103.5, 103.6)]
    assert syncs.between(steps, syncs.ends(trace)) == [1, 0, 1]
