"""A batch of the shape of MovieLens-1M, and how a model is trained on it."""

import torch

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.training.item_table import PlainItemTable, capacity_rows
from fuxi_beta.training.trainer import Trainer

SONGS, LISTENERS = 3706, 128


TRAIN = TrainConfig(protocol="leave_one_out", mode="all", item_optimizer="adamw", batch_size=LISTENERS)


def movielens_like_batch(listeners: int = LISTENERS, longest: int = 200, filled: float = 0.45) -> Batch:
    """Histories of log-normal length cut at `longest`, together `filled` of the padded square; bursts of events."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.empty(listeners).log_normal_(4.6, 0.9, generator=generator).clamp(max=longest)
    for _ in range(20):
        lengths = (lengths * (filled * listeners * longest / lengths.sum())).clamp(16, longest)
    lengths = lengths.long()
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = int(offsets[-1])
    popularity = 1 / torch.arange(1, SONGS + 1).double()
    items = torch.multinomial(popularity, tokens, replacement=True, generator=generator) + 1
    steps = torch.empty(tokens).log_normal_(3.0, 2.5, generator=generator).long()
    timestamp = 978_000_000 + steps.cumsum(0)
    last = offsets[1:] - 1
    following, target = timestamp.roll(-1), items.roll(-1)
    following[last], target[last] = timestamp[last] + 60, 0
    return Batch(
        offsets=offsets,
        item_index=items,
        timestamp=timestamp,
        next_timestamp=following,
        target=target,
        sample=torch.arange(listeners),
        seen_offsets=offsets,
        seen_items=items,
    )


def our_trainer(config: ModelConfig) -> Trainer:
    """The trainer of a worker of `fuxi train`, with an unsharded item table."""
    table = PlainItemTable(capacity_rows(SONGS, TRAIN.capacity_margin), config.dim, train=TRAIN)
    return Trainer(models.build(config), table, train=TRAIN, candidates=torch.arange(1, SONGS + 1))
