"""Running steps."""
