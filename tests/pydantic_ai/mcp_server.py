"""An MCP server, which notes in a file that it was started and what it did, and may kill who calls it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from mcp.server import MCPServer
except ImportError:  # its name before mcp 2
    from mcp.server.fastmcp import FastMCP as MCPServer

ledger, act, client = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
server = MCPServer("weather")


def note(what: str) -> None:
    with ledger.open("a") as file:
        file.write(f"{what}\n")


@server.tool()
def look(city: str) -> str:
    """Look how the weather is."""
    note(city)
    if act == "call":
        os.kill(client, 9)
    return f"sunny in {city}"


note("started")
server.run("stdio")
