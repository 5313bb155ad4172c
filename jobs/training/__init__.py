"""Training on Ray: the driver, its workers, and what they continue from."""
