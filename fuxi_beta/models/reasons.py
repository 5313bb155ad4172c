"""Which plays pulled a song into a list: a score as a sum over the plays of a listener.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `D` width, `K` songs of each listener.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import Term
from fuxi_beta.ops.contributions import gathered
from fuxi_beta.recommender import Reasons

_NUMBERS = 1 << 18
"""Numbers of the songs' vectors worked with at once, but for at least one listener: they stay in the CPU cache."""


@dataclass(frozen=True)
class Contributions:
    """Scores of K songs for each of R listeners as sums: of the terms over all plays, plus remainder, is the score."""

    terms: list[Term]  # at least one
    remainder: Tensor  # [R, K], what is no play's


class Trace(ABC):
    """How a model came to the vector of each listener of a batch."""

    vectors: Tensor  # [B, D], as of `SequenceModel.encode_last`

    @abstractmethod
    def contributions(self, songs: Tensor, rows: Tensor) -> Contributions:
        """The parts of the scores <vector, song>. songs: [R, K, D]; rows: int64 [R], listeners with plays."""


def strongest_plays(trace: Trace, batch: Batch, table: Tensor, items: Tensor, n: int) -> Reasons:
    """The n plays with the largest positive contribution to each song; arguments as of `Queries.reasons`.

    table: [V, D], the songs' vectors as they are scored. Memory is bounded whatever the lengths of histories.
    """
    count, k = items.shape
    found = Reasons.none(count, k, n, device=items.device, dtype=table.dtype)
    if not k:
        return found
    for rows in batch.lengths.nonzero().squeeze(1).split(max(1, _NUMBERS // (k * table.shape[1]))):
        own = items[rows]
        parts = trace.contributions(gathered(table, own), rows)
        tokens, weight = ops.strongest_plays(parts.terms, batch.offsets, batch.item_index, rows, n)
        found.put(rows, own, tokens, weight, parts.remainder)
    return found
