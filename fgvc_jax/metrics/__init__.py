"""Metrics on the host, and where they are written."""
