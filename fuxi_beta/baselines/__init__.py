"""Recommenders without a network; every evaluation shows them beside the model."""
