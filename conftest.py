"""Every Python block in the documentation is a test, run page by page in one namespace."""

from contextlib import ExitStack, chdir
from tempfile import TemporaryDirectory
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        stack.enter_context(chdir(folder))
        namespace["_leave_folder"] = stack.pop_all().close


def leave_folder(namespace: dict[str, Any]) -> None:
    namespace["_leave_folder"]()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/**/*.md", "docs/*.md", "packages/*/README.md"],
    setup=enter_empty_folder,
    teardown=leave_folder,
).pytest()
