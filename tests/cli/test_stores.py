"""`durable stores` lists what is installed, without importing it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from durable_cli import _stores
from tests.cli.conftest import Durable

PACKAGES = Path(__file__).parents[2] / "packages"


def test_what_is_installed(durable: Durable) -> None:
    """Each scheme, who serves it, and which version; two schemes of one distribution share a line."""
    objects = {each["scheme"]: each for each in durable("stores", "--json").objects}
    assert objects["sqlite"] == {
        "scheme": "sqlite",
        "distribution": "durable-sqlite",
        "version": version("durable-sqlite"),
        "install": None,
    }
    assert {"memory", "file", "postgres", "postgresql", "redis", "rediss", "unix", "s3"} <= {*objects}
    done = durable("stores")
    assert done.code == 0
    rows = [line.split("  ") for line in done.out.splitlines()]
    assert ["postgres: postgresql:", "durable-postgres", version("durable-postgres")] in [
        [cell.strip() for cell in row if cell.strip()] for row in rows
    ]


def test_what_is_not_installed(durable: Durable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of our own family it is said what to install; of a scheme that two serve, that none of them does."""
    for name in ("acme-durable", "other-durable"):
        info = tmp_path / f"{name.replace('-', '_')}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("[durable_core.stores]\nacme = nowhere:Store\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        done, objects = durable("stores"), durable("stores", "--json").objects
    assert {"scheme": "s3", "distribution": "durable-s3", "version": None, "install": "pip install durable-s3"} in objects
    assert {"scheme": "acme", "distribution": "acme-durable", "version": "2.5", "install": None} in objects
    assert "durable-redis     pip install durable-redis" in done.out
    assert "acme: is served by acme-durable and other-durable, so no store is opened by it: uninstall all but one" in done.out


def test_our_family_is_known() -> None:
    """The distributions that are named are ours, and serve what is said."""
    served = {}
    for file in PACKAGES.glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        if points := project.get("entry-points", {}).get(_stores.GROUP):
            served[project["name"]] = tuple(points)
    del served["durable-core"]  # it is always there
    assert served == dict(_stores.FAMILY)


def test_nothing_is_imported() -> None:
    """Neither core nor a store's driver."""
    program = (
        "import sys; from durable_cli.main import main; main(['stores']);"
        " print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {*done.stdout.splitlines()[-1].split()}
    assert imported & {"durable_core", "durable_sqlite", "asyncpg", "redis", "boto3", "asyncio"} == set()
