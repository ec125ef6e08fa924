"""Metrics on the host."""
