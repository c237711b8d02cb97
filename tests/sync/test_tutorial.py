"""The tutorial without asyncio: the same page, without its `async` and `await`, prints the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCKS = re.compile(
    r"^```python\n# (?P<file>[a-z_]+\.py)\n(?P<program>.*?)^```$"
    r"|^```bash\n(?P<script>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
BLOCKING = {"Runner", "flow", "open_store"}


def without_asyncio(program: str) -> str:
    """Write a program of the tutorial for `durable_core.sync`."""

    def imports(line: re.Match[str]) -> str:
        names = line[1].split(", ")
        kinds = {"durable_core": [each for each in names if each not in BLOCKING]}
        kinds["durable_core.sync"] = [each for each in names if each in BLOCKING]
        return "\n".join(f"from {module} import {', '.join(each)}" for module, each in kinds.items() if each)

    program = re.sub(r"^from durable_core import (.*)$", imports, program, flags=re.MULTILINE)
    program = program.replace("from durable_core.control import", "from durable_core.sync.control import")
    program = re.sub(r"\b(async|await) ", "", program)
    program = re.sub(r"\basyncio\.run\((.*)\)$", r"\1", program, flags=re.MULTILINE)
    program = re.sub(r"\brefund\.(refund\.main)", r"\1", program)
    return program.replace("import asyncio", "import time").replace("asyncio.sleep", "time.sleep")


@pytest.mark.skipif(sys.platform == "win32", reason="the page is for a shell of POSIX")
def test_the_tutorial_step_for_step(tmp_path: Path) -> None:
    """Crash, failure, typo, approval, resume and worker: each command of the page prints what the page says."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = 0
    for block in BLOCKS.finditer(PAGE.read_text(encoding="utf-8")):
        if block["file"]:
            program = block["program"] if block["file"] == "worker.py" else without_asyncio(block["program"])
            assert block["file"] == "worker.py" or not re.search("async|await", program)
            (tmp_path / block["file"]).write_text(program, encoding="utf-8")
            continue
        script = f"set -e -o pipefail\n{block['script']}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if block["output"] is not None:
            pattern = re.escape(block["output"].strip()).replace(re.escape("..."), ".*?")
            printed = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
            assert re.fullmatch(pattern, printed, re.DOTALL), f"expected:\n{block['output']}\nprinted:\n{printed}"
            ran += 1
    assert ran > 10
