"""The one command: `nox` runs everything, `nox --list` shows what that is.

`nox -s tests -- -k replay` passes arguments to pytest.
"""

import os
import platform
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
# Also under CI: which interpreters a machine has is not for this file to decide.
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
PACKAGES = {path.parent.name: nox.project.load_toml(path) for path in sorted(Path("packages").glob("*/pyproject.toml"))}
CURRENT = ".".join(platform.python_version_tuple()[:2])
DECLARED = nox.project.python_versions(PACKAGES["durable-core"])
# The interpreter that runs nox always runs the tests; others run them where they are installed.
PYTHONS = [CURRENT, *(version for version in DECLARED if version != CURRENT)]
DIST = Path("dist")
# The slow stores first; they are the last by name.
CONTRACTS = sorted((path.as_posix() for path in Path("tests").rglob("test_contract*.py")), reverse=True)
VALUES = ["tests/core/test_record.py", "tests/core/values"]
AGENTS = [
    *(f"tests/openai_agents/test_{name}.py" for name in ("approvals", "hooks", "mcp", "run_agent")),
    *(f"tests/pydantic_ai/test_{name}.py" for name in ("replay", "approvals", "scopes", "streaming", "mcp", "hooks")),
]
# More than there are processors: most of a test's time is waiting, for a server, a lease or another process. A module, a class
# or a page at a time, since the examples of a page build on each other, in the order of the folders, whose last ones are short.
PARALLEL = ["-n", str(min(8, 2 * (os.cpu_count() or 1))), "--dist", "loadscope", "--no-loadscope-reorder"]
# The driver and the wheel were tried on every S3 by `tests`; where only they differ, one tells as much.
ONE_S3 = ["-k", "not moto and not SmallPages"]
# Stores behind a server were tested whole from the checkout; here their contract shows that the wheel holds everything.
WHEEL_TESTS = {
    "durable-core": ["tests/core/stores/test_contract_memory.py"],
    "durable-file": ["tests/file"],
    "durable-postgres": ["tests/postgres/test_contract_postgres.py::TestPostgresStore"],
    "durable-redis": ["tests/redis/test_contract.py::TestRedisStore"],
    "durable-sqlite": ["tests/sqlite"],
    "durable-s3": ["tests/s3/test_contract_s3.py::TestS3Store"],
    "durable-cli": ["tests/cli/test_start.py"],
    "durable-otel": ["tests/otel/test_spans.py", "tests/otel/test_metrics.py"],
    "durable-openai-agents": ["tests/openai_agents/test_run_agent.py", "tests/openai_agents/test_approvals.py"],
    "durable-pydantic-ai": ["tests/pydantic_ai/test_replay.py", "tests/pydantic_ai/test_hooks.py"],
    "durable-web": ["tests/web/test_packaging.py", "tests/web/test_attacks.py"],
    "durable-worker": ["tests/worker/test_worker.py", "tests/worker/test_cron.py", "tests/worker/test_signatures.py"],
}
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def editable() -> list[str]:
    return [argument for name in PACKAGES for argument in ("-e", f"packages/{name}")]


def pytest(session: nox.Session, *arguments: str) -> None:
    # Tests start hundreds of processes, and without stored bytecode each compiles all that it imports.
    session.run("pytest", *PARALLEL, *arguments, *session.posargs, env={"PYTHONDONTWRITEBYTECODE": ""})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the packages with mypy, and what their users see with mypy and pyright."""
    session.install(*editable(), *group("types"))
    sources = [f"packages/{name}/src" for name in PACKAGES]
    session.run("mypy", *sources, "tests/typing", "examples")
    session.run("pyright")
    for name in PACKAGES:
        session.run("pyright", "--ignoreexternal", "--verifytypes", name.replace("-", "_"))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite and every example in the documentation."""
    session.install(*editable(), *group("tests"))
    pytest(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """Check values, records, telemetry, agents and stores' contracts with the lowest dependencies that the packages declare."""
    declared = {line for package in PACKAGES.values() for line in package["project"]["dependencies"]}
    lower_bounds = [line.replace(">=", "==") for line in sorted(declared) if not line.startswith(tuple(PACKAGES))]
    session.install(*editable(), *group("tests"), *lower_bounds)
    pytest(session, *CONTRACTS, *VALUES, "tests/otel", *AGENTS, *ONE_S3, "--dist", "worksteal")


@nox.session
def celery(session: nox.Session) -> None:
    """Let real workers of Celery drive runs over a real broker, kill some, and run the page about them."""
    session.install(*editable(), *group("tests"), *group("celery"))
    pytest(session, "tests/celery", "docs/howto/celery.md")


@nox.session(default=False)  # a fresh machine has no browser
def browser(session: nox.Session) -> None:
    """Use the page as people do, in Chromium, which has to be installed: two windows, by keyboard, without scripts, and axe."""
    chromium = _chromium(session)
    session.install(*editable(), *group("tests"), *group("browser"))
    session.run("pytest", "tests/web/browser", *session.posargs, env={"CHROMIUM": chromium})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link or reference is an error."""
    session.install(*group("docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def site(session: nox.Session) -> None:
    """Look at every page of the documentation in Chromium, which has to be installed."""
    browser = _chromium(session)
    session.install(*group("site"))
    folder = session.create_tmp()
    build = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(Path(folder, "durable").resolve())]
    session.run(*build, env={"NO_MKDOCS_2_WARNING": "1"})
    # On its own: the other tests' settings and plugins are not installed here.
    alone = ["--noconftest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    files = ["tests/docs/check_site.py", *session.posargs]
    session.run("pytest", "-c", os.devnull, "--rootdir=.", *alone, *files, env={"DURABLE_SITE": folder, "CHROMIUM": browser})


@nox.session(default=False)
def publish_docs(session: nox.Session) -> None:
    """Publish the documentation as the version named after `--`, such as 0.1."""
    if len(session.posargs) != 1:
        session.error("name the version: nox -s publish_docs -- 0.1")
    session.install(*group("docs"))
    session.run("python", "docs/_build/publish.py", *session.posargs)


@nox.session(default=False)
def diagrams(session: nox.Session) -> None:
    """Draw the documentation's mermaid blocks anew; takes the path of mermaid.js, such as npm's @mermaid-js/tiny holds."""
    if len(session.posargs) != 1:
        session.error("give the path of mermaid.js: nox -s diagrams -- node_modules/@mermaid-js/tiny/dist/mermaid.tiny.js")
    browser = _chromium(session)
    session.install(*group("site"))
    session.run("python", "docs/_build/draw_diagrams.py", *session.posargs, browser)


@nox.session(default=False)
def picture(session: nox.Session) -> None:
    """Record the front page's program, and take a picture of the web page; on POSIX only, because it needs a terminal."""
    chromium = _chromium(session)
    session.install(*editable(), *group("tests"), *group("browser"))
    session.run("python", "docs/_build/draw_demo.py")
    session.run("python", "docs/_build/draw_page.py", env={"CHROMIUM": chromium})


def _chromium(session: nox.Session) -> str:
    if not CHROMIUM:
        session.error("no Chromium was found: install one (apt-get install chromium), or set CHROMIUM to its path")
    return CHROMIUM


@nox.session
def build(session: nox.Session) -> None:
    """Build and check an sdist and a wheel of every package, the wheel from the sdist."""
    session.install(*group("build"))
    shutil.rmtree(DIST, ignore_errors=True)
    for name in PACKAGES:
        session.run("python", "-m", "build", "-n", f"packages/{name}", "-o", str(DIST))
    built = sorted(map(str, DIST.iterdir()))
    session.run("twine", "check", "--strict", *built)
    session.run("check-wheel-contents", *(path for path in built if path.endswith(".whl")))
    session.run("python", "tests/check_dist.py", *built)


@nox.session(default=False)
def names(session: nox.Session) -> None:
    """Ask the package index whether each distribution's name is free or ours."""
    session.install(*group("names"))
    session.run("python", ".github/check_names.py", *session.posargs)


@nox.session
@nox.parametrize("package", list(PACKAGES), ids=list(PACKAGES))
def wheels(session: nox.Session, package: str) -> None:
    """Run a package's tests against its built wheel and core's alone, never the checkout."""
    names = {"durable-core", package}
    found = [str(wheel) for name in names for wheel in DIST.glob(f"{name.replace('-', '_')}-*.whl")]
    if len(found) != len(names):
        session.error("dist/ does not hold one wheel of each package: run `nox -s build` first")
    session.install(*found, *group("tests"))
    pytest(session, *WHEEL_TESTS[package], *ONE_S3, "--dist", "worksteal")


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Kill a nightly settlement half-way and resume it."""
    session.install("-e", "packages/durable-core", "-e", "packages/durable-file")
    session.run("python", "examples/settle_orders.py", *session.posargs, env={"DEMO_COMMAND": "nox -s demo --"})


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Measure every file in benchmarks/, or those named after `--`; a figure beyond its limit shows and fails nothing."""
    session.install(*editable(), *group("tests"))
    shared = {"rows.py", "runs.py"}
    for path in session.posargs or sorted(str(path) for path in Path("benchmarks").glob("*.py") if path.name not in shared):
        session.run("python", path)


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Measure durable beside its peers, each in an environment of its own, and write the page about it; about 10 minutes."""
    session.install(*editable(), *group("tests"), *group("peers"))
    session.run("python", "-m", "benchmarks.peers", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Kill and freeze workers, restart servers and cut connections, two minutes a store; takes stores, `--seconds`, `--seed`."""
    session.install(*editable(), *group("tests"))
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Take the mends of old faults out, one after the other, and see the soak find each; takes parts of their names."""
    session.install(*editable(), *group("tests"))
    session.run("python", "-m", "tests.soak.faults", *session.posargs)


@nox.session(default=False)
def broken(session: nox.Session) -> None:
    """Break each guarantee on purpose and see its tests fail; takes parts of the rows' names, and `--shard 1/4` and the like."""
    session.install(*editable(), *group("tests"), *group("celery"))
    session.run("python", "-m", "tests.broken.run", *session.posargs)


@nox.session(default=False)
def ceph(session: nox.Session) -> None:
    """Run the S3 contract on Ceph's object gateway, from Debian's radosgw, ceph-mon, ceph-osd, ceph-mgr and ceph-common."""
    session.install(*editable(), *group("tests"))
    tests = ["test_contract_s3.py", "test_bad_input.py", "test_runner_s3.py"]
    paths = [f"tests/s3/{name}" for name in tests]
    session.run("tests/servers/ceph.sh", "pytest", *paths, "-k", "not Small", external=True)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Give everything that parses fifty times as many hostile inputs as the tests do, and damage files at every byte."""
    session.install(*editable(), *group("tests"))
    examples = os.environ.get("FUZZ_EXAMPLES", "3000")
    targets = session.posargs or ["tests/fuzz", "tests/worker/test_webhooks_any_request.py"]
    session.run("pytest", "--timeout=7200", "-n", "auto", *targets, env={"FUZZ_EXAMPLES": examples})
