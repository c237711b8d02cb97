"""Commands that ask for runs, and run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

COMMANDS: Final[Mapping[str, click.Command]] = {}
