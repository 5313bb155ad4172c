"""MLflow: versions of the daily model, and what a version holds."""
