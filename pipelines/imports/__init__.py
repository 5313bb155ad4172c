"""Published data sets as sequence shards."""
