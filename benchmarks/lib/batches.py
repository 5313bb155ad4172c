"""Batches of histories for benchmarks of kernels."""

import torch

from fuxi_beta.data.batches import Batch


def batch_of(listeners: int, events: int) -> Batch:
    """Histories of equal length, an event every ten minutes or so."""
    tokens = listeners * events
    generator = torch.Generator().manual_seed(events)
    timestamp = 1_600_000_000 + torch.randint(1, 1200, (tokens,), generator=generator).cumsum(0)
    nothing = torch.zeros(tokens, dtype=torch.int64)
    return Batch(
        offsets=torch.arange(listeners + 1) * events,
        item_index=nothing,
        timestamp=timestamp,
        next_timestamp=timestamp + 60,
        target=nothing,
        sample=torch.arange(listeners),
        seen_offsets=torch.zeros(listeners + 1, dtype=torch.int64),
        seen_items=nothing[:0],
    )
