"""Commands for stores as a whole, and for moving runs between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

COMMANDS: Final[Mapping[str, click.Command]] = {}
