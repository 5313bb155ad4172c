"""A model that is a stack of equal blocks, as most are; a model's file defines the block.

Shapes: `T` packed tokens, `D` width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.ops.elapsed import BUCKETS, bucket_of


class GapEmbedding(nn.Module):
    """The time from each event to the one it predicts: a learned vector a bucket of its logarithm; N(0, 0.02)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(BUCKETS, dim).normal_(std=0.02))

    def forward(self, batch: Batch) -> Tensor:
        """[T, D]."""
        return F.embedding(bucket_of(batch.next_timestamp - batch.timestamp), self.weight)


class Stack(SequenceModel):
    """`config.layers` blocks, each called as block(tokens [T, D], context) -> tokens [T, D].

    gap: add the time until the event to predict to its token, for a model without a map of elapsed time.
    """

    def __init__(self, config: ModelConfig, block: Callable[[], nn.Module], *, gap: bool = False) -> None:
        super().__init__(config)
        self.gap = GapEmbedding(config.dim) if gap else None
        self.blocks = nn.ModuleList(block() for _ in range(config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        if self.gap is not None:
            x = x + self.gap(ctx.batch)
        for block in self.blocks:
            x = block(x, ctx)
        return x
