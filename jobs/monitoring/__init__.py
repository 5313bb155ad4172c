"""What is told of a day to systems that watch: Prometheus and OpenLineage."""
