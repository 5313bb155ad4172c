"""Protocols, ranking metrics, and whether two systems can be told apart."""
