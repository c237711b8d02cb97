"""Publishes the documentation as one version on the branch `gh-pages`: `nox -s publish_docs -- 0.1`.

The highest version published is also `latest`, which the root leads to; mending an older one leaves that alone.
"""

import json
import os
import subprocess
import sys

BRANCH = "gh-pages"


def main(version: str) -> None:
    newest = max([version, *published()], key=number)
    mike("deploy", "--push", "--update-aliases", version, *(["latest"] if newest == version else []))
    mike("set-default", "--push", "latest")
    show_at_unknown_addresses(f"{newest}/404.html")


def published() -> list[str]:
    return [entry["version"] for entry in json.loads(mike("list", "--json") or "[]")]


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def show_at_unknown_addresses(path: str) -> None:
    """Put a page at the root, where the host looks for `404.html` and mike leaves none."""
    commit = f"""commit refs/heads/{BRANCH}
committer {run("git", "var", "GIT_COMMITTER_IDENT")}
data <<END
Show {path} at unknown addresses
END
from refs/heads/{BRANCH}^0
M 100644 {run("git", "rev-parse", f"{BRANCH}:{path}")} 404.html
"""
    run("git", "fast-import", "--quiet", input=commit)
    run("git", "push", "origin", BRANCH)


def mike(*arguments: str) -> str:
    return run("mike", *arguments)


def run(*command: str, input: str | None = None) -> str:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, input=input, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
