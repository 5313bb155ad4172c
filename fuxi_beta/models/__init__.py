"""Sequence models behind one interface (`base.SequenceModel`), a file for each family."""

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import SequenceModel
from fuxi_beta.models.fuxi_beta import FuXiBeta


def build(config: ModelConfig) -> SequenceModel:
    """The network that `config` describes, with fresh weights from torch's random state."""
    return FuXiBeta(config)
