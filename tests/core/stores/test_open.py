"""From a URL to a store, through the entry points of what is installed."""

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.stores.memory import MemoryStore
from durable_core.stores.opening import open_store

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install distributions, as pip would leave them, on a path of their own."""

    def install(distribution: str, *schemes: str, code: str = "", module: str | None = None) -> None:
        place = tmp_path / distribution
        info = place / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        name = module or f"plugin_{distribution.replace('-', '_')}"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
        points = "".join(f"{scheme} = {name}:PluginStore\n" for scheme in schemes)
        (info / "entry_points.txt").write_text(f"[durable_core.stores]\n{points}", encoding="utf-8")
        (place / f"{name}.py").write_text(code or PLUGIN, encoding="utf-8")
        monkeypatch.syspath_prepend(place)

    return install


PLUGIN = """
from durable_core.stores.memory import MemoryStore
from durable_core.stores.urls import StoreURL, seconds

class PluginStore(MemoryStore):
    @classmethod
    def from_url(cls, url):
        store = cls()
        store.url = url
        store.options = StoreURL(url).options({"ttl": seconds})
        return store
"""


async def test_memory_is_always_there() -> None:
    """`memory:` opens a store of its own each time."""
    async with open_store("memory:") as store, open_store("memory:") as other:
        assert isinstance(store, MemoryStore)
        await store.append(StepRecord(run_id="run", step_id="step"))
        assert len(await store.list("run")) == 1
        assert len(await other.list("run")) == 0


def test_an_installed_store_is_found_by_its_scheme(install: Install) -> None:
    """A distribution's class is imported when its scheme is first asked for, and gets the URL as it is."""
    install("acme-durable", "acme", "acmes", module="plugin_found")
    assert "plugin_found" not in sys.modules
    store = open_store("ACME://user:pw@host/x?ttl=3")
    assert vars(store)["url"] == "ACME://user:pw@host/x?ttl=3"
    assert vars(store)["options"] == {"ttl": 3.0}
    assert type(open_store("acmes:")).__name__ == "PluginStore"


def test_a_distribution_that_is_listed_twice_is_one(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install beside an old copy is no conflict of two distributions."""
    install("acme-durable", "acme")
    copy = tmp_path / "copy" / "acme_durable-0.9.dist-info"
    copy.mkdir(parents=True)
    for file in (tmp_path / "acme-durable" / "acme_durable-1.0.dist-info").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(copy.parent)
    assert type(open_store("acme:")).__name__ == "PluginStore"


def test_an_unknown_scheme_names_those_installed(install: Install) -> None:
    """The message lists what could be written instead, and invents no distribution."""
    install("acme-durable", "acme")
    with pytest.raises(StoreError, match=r"'mysql'; installed: acme, .*memory") as refused:
        open_store("mysql://user:SECRET@host/db")
    assert "pip" not in str(refused.value)
    assert "SECRET" not in str(refused.value)


def served() -> Iterator[tuple[str, str]]:
    """Yield each scheme that a package of ours declares, but core's own, with its distribution."""
    for file in sorted(Path(__file__).parents[2].glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        for scheme in project.get("entry-points", {}).get("durable_core.stores", ()):
            if scheme != "memory":
                yield scheme, project["name"]


@pytest.mark.parametrize(("scheme", "distribution"), [*served()])
def test_our_own_schemes_name_the_distribution(monkeypatch: pytest.MonkeyPatch, scheme: str, distribution: str) -> None:
    """Of our own family the message says what to install."""
    monkeypatch.setattr(sys, "path", [])  # nothing is installed
    with pytest.raises(StoreError, match=rf"for the scheme '{scheme}'; installed: none\. To use it: pip install {distribution}$"):
        open_store(f"{scheme}://x")


def test_two_distributions_with_one_scheme(install: Install) -> None:
    """Neither wins: both are named."""
    install("acme-durable", "acme", module="plugin_one")
    install("zenith-durable", "acme", module="plugin_two")
    with pytest.raises(StoreError, match=r"serves 'acme': acme-durable and zenith-durable; uninstall all but one"):
        open_store("acme:")
    assert not {"plugin_one", "plugin_two"} & sys.modules.keys()


def test_a_plugin_that_fails_to_import_says_so_itself(install: Install) -> None:
    """The plugin's own error is let through, not turned into an unknown scheme."""
    install("acme-durable", "acme", module="plugin_broken", code="import a_driver_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_driver_that_is_not_there"):
        open_store("acme:")


@pytest.mark.parametrize("url", ["runs", "./runs.jsonl", "C:\\runs", "D:/runs"])
def test_a_path_is_no_url(url: str) -> None:
    """A bare path, of Windows too, is told how to be written."""
    with pytest.raises(StoreError, match="has no scheme; .* write sqlite: .* or file: "):
        open_store(url)


@pytest.mark.parametrize("name", ["memory", "acme", "MEMORY"])
def test_the_bare_name_of_a_scheme(install: Install, name: str) -> None:
    """What is installed and only lacks its colon is no path."""
    install("acme-durable", "acme")
    with pytest.raises(StoreError, match=rf"^'{name}' lacks a colon: a URL of this store begins with '{name.lower()}:'$"):
        open_store(name)


async def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument `DURABLE_STORE` is opened; an error says so where it is not set."""
    monkeypatch.setenv("DURABLE_STORE", "memory:")
    assert isinstance(open_store(), MemoryStore)
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("DURABLE_STORE")
        else:
            monkeypatch.setenv("DURABLE_STORE", value)
        with pytest.raises(
            StoreError, match=r"^no store is given: pass open_store a URL such as 'sqlite:./runs.db', or set DURABLE_STORE"
        ):
            open_store()


def test_a_forgotten_scheme_shows_no_secret() -> None:
    """`user:secret@host` looks like the scheme `user`; the rest of it is not shown."""
    with pytest.raises(StoreError, match="'admin'") as refused:
        open_store("admin:SECRET@host/db")
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("url", ["memory:?ttl=1", "memory:/x"])
def test_memory_takes_nothing(url: str) -> None:
    """What would be ignored is refused."""
    with pytest.raises(StoreError, match="memory:"):
        open_store(url)
