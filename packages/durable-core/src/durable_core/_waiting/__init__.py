"""Waiting for time, people and events."""
