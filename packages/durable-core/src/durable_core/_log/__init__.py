"""A run's log as the library reads and writes it."""
