"""What `benchmarks.chaos` is made of: disturbances, their victims, places to work in, and what a day leaves behind."""
