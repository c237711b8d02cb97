"""The command `durable`: see runs, decide, mend, move and serve them from a terminal."""
