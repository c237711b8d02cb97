"""Values as JSON, and back, unchanged."""
