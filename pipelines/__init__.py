"""Logs to sequence shards, with Spark and Arrow and without torch."""
