"""Foundations: waiting, ids, text, and the root errors."""
