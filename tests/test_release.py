"""The release: in which order it publishes, and that it stops before a name that is somebody else's."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECTS = [tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in ROOT.glob("packages/*/pyproject.toml")]
OURS = "https://github.com/durable-py/durable"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The URL of a package index, whose projects are the folders of `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def publish(folder: Path, name: str, source: str) -> None:
    wheel = f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl"
    (folder / name).mkdir()
    with ZipFile(folder / name / wheel, "w") as archive:
        metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\nProject-URL: Source, {source}\n"
        archive.writestr(f"{wheel.removesuffix('-py3-none-any.whl')}.dist-info/METADATA", metadata)
    link = f"{wheel}#sha256={sha256((folder / name / wheel).read_bytes()).hexdigest()}"
    (folder / name / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{link}">{wheel}</a></body></html>')


def check_names(index: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ".github/check_names.py", index]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_names_that_are_free_or_ours_are_released(index: str, tmp_path: Path) -> None:
    """The first release finds all names free, and a later one, or one that is run again, finds ours."""
    publish(tmp_path, "durable-core", OURS)
    done = check_names(index)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        f"{project['name']}: {'ours' if project['name'] == 'durable-core' else 'free'}" for project in PROJECTS
    }


def test_a_name_of_somebody_else_stops_the_release(index: str, tmp_path: Path) -> None:
    """It is named with where it leads to, and so is every other such name."""
    publish(tmp_path, "durable-core", OURS)
    publish(tmp_path, "durable-file", "https://example.com/files")
    (tmp_path / "durable-worker").mkdir()
    (tmp_path / "durable-worker" / "index.html").write_text("<!DOCTYPE html><html><body></body></html>")
    done = check_names(index)
    assert done.returncode == 1
    assert f"durable-file links to https://example.com/files, and ours link to {OURS}" in done.stderr
    assert f"durable-worker links to nothing, and ours link to {OURS}" in done.stderr
    assert "durable-core links" not in done.stderr


def test_every_distribution_is_published_after_those_that_it_requires() -> None:
    """Core is published first, and the others require no sibling but core."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    others = re.findall(r"^ +- (durable-[\w-]+)$", workflow, re.MULTILINE)
    assert sorted(["durable-core", *others]) == sorted(project["name"] for project in PROJECTS)
    assert workflow.index("environment: durable-core\n") < workflow.index("needs: core") < workflow.index("- durable-")
    for project in PROJECTS:
        required = {Requirement(line).name for line in project["dependencies"]}
        assert required & set(others) == set(), project["name"]


def test_a_release_that_failed_half_way_can_be_run_again() -> None:
    """What is already published is skipped, and the files of the first try are replaced."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert workflow.count("uses: pypa/gh-action-pypi-publish@") == workflow.count("skip-existing: true") == 2
    assert "overwrite: true" in workflow
    assert "fail-fast: false" in workflow
