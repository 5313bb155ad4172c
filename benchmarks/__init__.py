"""Measurements: each module prints one table and, as its last line, one JSON object."""
