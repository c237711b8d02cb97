"""Commands that let a run go on, stop it, or begin it anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

COMMANDS: Final[Mapping[str, click.Command]] = {}
