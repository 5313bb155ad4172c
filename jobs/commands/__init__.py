"""Commands of `fuxi` that are no stage of a day."""
