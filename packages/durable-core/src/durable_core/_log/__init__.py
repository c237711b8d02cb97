"""Reading and writing a run's log."""
