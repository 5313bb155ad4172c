"""The interface of everything that makes lists, models and baselines alike.

Shapes: `B` listeners, `K` list length.
"""

from collections.abc import Callable

from torch import Tensor

from fuxi_beta.config import Mode
from fuxi_beta.data.batches import Batch

Pairs = tuple[Tensor, Tensor]
"""Songs of single listeners: rows of the batch and item indices, int64, of one length."""


class Recommender:
    """Ranks its candidates for each listener."""

    vocabulary_size: int  # highest item index it knows
    mode: Mode  # whether it recommends first listens only (`exclusive`) or any play

    def rank(self, batch: Batch, k: int, *, excluded: Pairs | None = None) -> tuple[Tensor, Tensor]:
        """The k best candidates of each listener, without the excluded pairs.

        Returns items int64 [B, K], best first and ties by lower index, 0 where there are fewer, and their scores
        float32 [B, K].
        """
        raise NotImplementedError

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """The raw list: `rank` without list rules, and in mode `exclusive` without songs the listener has heard."""
        return self.rank(batch, k, excluded=heard_songs(batch) if self.mode == "exclusive" else None)


ListMaker = Callable[[Recommender, Batch, int], tuple[Tensor, Tensor]]
"""(recommender, batch, k) to lists as `Recommender.rank` returns them."""


def raw_lists(recommender: Recommender, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """The list maker without list rules."""
    return recommender.recommend(batch, k)


def heard_songs(batch: Batch) -> Pairs:
    """Every song that a listener of the batch heard before its cut, skips included."""
    return batch.seen_listener, batch.seen_items
