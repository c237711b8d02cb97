"""The one command: `nox` runs everything, `nox --list` shows what that is.

`nox -s tests -- -k replay` passes arguments to pytest.
"""

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


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def editable() -> list[str]:
    return [argument for name in PACKAGES for argument in ("-e", f"packages/{name}")]


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
    session.run("pytest", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the test suite against the lowest dependencies that the packages declare."""
    declared = {line for package in PACKAGES.values() for line in package["project"]["dependencies"]}
    lower_bounds = [line.replace(">=", "==") for line in sorted(declared) if not line.startswith(tuple(PACKAGES))]
    session.install(*editable(), *group("tests"), *lower_bounds)
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link or reference is an error."""
    session.install(*group("docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


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


@nox.session
@nox.parametrize("package", list(PACKAGES), ids=list(PACKAGES))
def wheels(session: nox.Session, package: str) -> None:
    """Run a package's tests against its built wheel and core's alone, never the checkout."""
    names = {"durable-core", package}
    found = [str(wheel) for name in names for wheel in DIST.glob(f"{name.replace('-', '_')}-*.whl")]
    if len(found) != len(names):
        session.error("dist/ does not hold one wheel of each package: run `nox -s build` first")
    session.install(*found, *group("tests"))
    session.run("pytest", f"tests/{package.removeprefix('durable-')}", *session.posargs)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Kill a nightly settlement half-way and resume it."""
    session.install("-e", "packages/durable-core", "-e", "packages/durable-file")
    session.run("python", "examples/settle_orders.py", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Measure every file in benchmarks/, or those named after `--`."""
    session.install(*editable(), *group("tests"))
    for path in session.posargs or sorted(map(str, Path("benchmarks").glob("*.py"))):
        session.run("python", path)
