"""Protocols, ranking metrics, and whether two systems differ significantly."""
