"""Commands by which a person decides, or tells a run what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

COMMANDS: Final[Mapping[str, click.Command]] = {}
