"""Listeners who asked to be forgotten: a blocklist, and what is removed from files that are there."""
