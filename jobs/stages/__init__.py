"""The stages of a day, each with `run(day)`."""
