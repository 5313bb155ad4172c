"""From sequence shards to jagged batches, and randomness that ignores how work is split."""
