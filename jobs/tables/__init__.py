"""The Delta tables that a day publishes."""
