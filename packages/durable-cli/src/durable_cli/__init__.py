"""The command `durable`: see runs, decide, mend, move and serve them from a terminal."""

__all__: list[str] = []
"""Nothing is imported from here: the command is all there is."""
