"""Synthetic music logs of any size from a seed, and the best score their process allows (docs/synthetic-logs.md)."""

from pipelines.synthetic.config import FROZEN, GENERATOR_VERSION, SyntheticConfig
from pipelines.synthetic.generate import generate, read_config

__all__ = ["FROZEN", "GENERATOR_VERSION", "SyntheticConfig", "generate", "read_config"]
