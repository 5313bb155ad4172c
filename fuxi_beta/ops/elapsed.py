"""Elapsed times: from the time of a row's prediction (its query time) back to the time of a past event (its key time).

Row i of a map predicts the event after token i, so its query time is t_{i+1}. Column j is the past event that it looks
back at, with key time t_j. Unix seconds in float32 are 64 s apart, so times are subtracted as integers.

Shapes: `n` padded length of a group of `G` listeners.
"""

from functools import cached_property

import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Group

BUCKETS = 129
_BUCKET_WIDTH = 0.301  # of the natural logarithm


class Elapsed:
    """x = max(t_{i+1} - t_j, 0) of every pair of a group, in the forms that layers need; each is computed once."""

    def __init__(self, batch: Batch, group: Group, dtype: torch.dtype) -> None:
        self._batch, self._group, self._dtype = batch, group, dtype

    @cached_property
    def _difference(self) -> Tensor:
        """t_{i+1} - t_j. int64 [G, n, n]."""
        query_time, key_time = map(self._group.by_listener, (self._batch.next_timestamp, self._batch.timestamp))
        return query_time[:, :, None] - key_time[:, None, :]

    @cached_property
    def seconds(self) -> Tensor:
        """x, and 0 above the diagonal. [G, n, n]."""
        return self._difference.clamp(min=0).to(self._dtype).tril_()

    @cached_property
    def log(self) -> Tensor:
        """log(1 + x), and 0 above the diagonal. [G, n, n]."""
        return self.seconds.log1p()

    @cached_property
    def bucket(self) -> Tensor:
        """`bucket_of` the difference, and `BUCKETS` above the diagonal. int64 [G, n, n]."""
        bucket = bucket_of(self._difference)
        above = torch.ones(bucket.shape[1:], dtype=torch.bool, device=bucket.device).triu_(1)
        return bucket.masked_fill_(above, BUCKETS)


def bucket_of(difference: Tensor) -> Tensor:
    """HSTU's bucket of a time difference x: floor(ln(max(|x|, 1)) / 0.301), at most 128. int64, same shape."""
    return (difference.abs().clamp_(min=1).double().log_() / _BUCKET_WIDTH).long().clamp_(max=BUCKETS - 1)


def log_elapsed(query_time: Tensor, key_time: Tensor, dtype: torch.dtype) -> Tensor:
    """log(1 + max(query time - key time, 0)) of integer Unix seconds that broadcast."""
    return (query_time - key_time).clamp_(min=0).to(dtype).log1p_()
