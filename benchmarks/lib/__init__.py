"""What the commands share: fair timing, generated logs and shards, baselines, and what a process costs."""
