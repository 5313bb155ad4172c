"""Measurements: one command a file, helpers in `lib`; README.md lists the commands."""
