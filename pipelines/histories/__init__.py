"""Listeners' histories: shuffled, sorted, merged day by day, and stored as sequence shards."""
