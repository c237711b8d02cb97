"""Every example in the documentation is a test, run page by page: Python in one namespace, commands in one folder.

A Python block that begins with a comment naming a file, such as `# refund.py`, is written to that file and not run; the `bash`
blocks of the page run it. A `text` block right below a `bash` block is what that prints, with `...` for what varies. `sql` runs
on the pages that have a database.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, chdir
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.sybil import SybilCollection

pytest_plugins = ["tests.docs.servers"]
# Some tests import parts of the contract before `StoreTests`, which would register it too late then.
pytest.register_assert_rewrite("durable_core.testing._contract")

settings.register_profile("busy", deadline=None)  # a machine with much to do is no fault
settings.load_profile("busy")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: programs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

FILE = re.compile(r"# ([a-z_]+\.py)\n")
COMMANDS = re.compile(r"^```bash\n(?P<script>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Python:
    """Runs a block, or writes it to the file that its first line names."""

    def __init__(self) -> None:
        self._parse = PythonCodeBlockParser(future_imports=["annotations"])

    def __call__(self, document: Document) -> Iterable[Region]:
        for region in self._parse(document):
            if FILE.match(region.parsed):
                region.evaluator = self._write
            yield region

    def _write(self, example: Example) -> None:
        name = FILE.match(example.parsed)
        assert name is not None
        Path(name[1]).write_text(example.parsed, encoding="utf-8")


def commands(document: Document) -> Iterator[Region]:
    """Find the blocks of shell commands, each with the output that the page promises."""
    for block in COMMANDS.finditer(document.text):
        yield Region(block.start(), block.end(), parsed=block.groupdict(), evaluator=run_commands)


def run_commands(example: Example) -> None:
    # The interpreter that runs the tests is `python`, and a command that fails ends the block.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    script = f"set -e -o pipefail\n{example.parsed['script']}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    if (expected := example.parsed["output"]) is not None:
        pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*?")
        printed = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        assert re.fullmatch(pattern, printed, re.DOTALL), f"expected:\n{expected}\nprinted:\n{printed}"


def run_sql(example: Example) -> None:
    from tests.docs import servers  # a plugin, which pytest wants to import first

    servers.run_sql(str(example.parsed))


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        stack.enter_context(chdir(folder))
        namespace["_leave_folder"] = stack.pop_all().close


def leave_folder(namespace: dict[str, Any]) -> None:
    namespace["_leave_folder"]()


def pages(*patterns: str, excludes: Iterable[str] = (), server: str | None = None) -> Sybil:
    return Sybil(
        parsers=[Python(), commands, CodeBlockParser("sql", run_sql)],
        patterns=patterns,
        excludes=[*excludes],
        setup=enter_empty_folder,
        teardown=leave_folder,
        fixtures=[server] if server else [],
    )


# These pages talk to a server, where their addresses lead to the tests' own.
SERVED = {
    "every_server_page": ["docs/howto/many-machines.md"],
    "postgres_page": ["docs/stores/postgres.md", "packages/durable-postgres/README.md"],
    "redis_page": ["docs/stores/redis.md", "packages/durable-redis/README.md"],
    "s3_page": ["docs/stores/s3.md", "docs/howto/aws-lambda.md", "packages/durable-s3/README.md"],
}
EVERYWHERE = ["README.md", "docs/**/*.md", "docs/*.md", "packages/*/README.md"]
# `nox -s celery` names this page, and fails where nothing of it was run; elsewhere Celery is not installed.
CELERY = {"celery_page": ["docs/howto/celery.md"]}
COLLECTORS = [
    pages(*EVERYWHERE, excludes=[page for served in (SERVED | CELERY).values() for page in served]),
    *(pages(*served, server=server) for server, served in (SERVED | (CELERY if find_spec("celery") else {})).items()),
]

pytest_collect_file = SybilCollection(COLLECTORS).pytest()
