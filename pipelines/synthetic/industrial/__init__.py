"""Synthetic logs of the paper's industrial sizes."""
