"""Exact top-k search of a catalogue as an operator. `top_k` is plain torch, `triton/top_k` runs on GPUs.

Shapes: `B` listeners, `V` rows of the item table, `D` width, `K` list length.
"""

from typing import Any

from torch import Tensor

from fuxi_beta.ops.dispatch import takes_triton
from fuxi_beta.ops.top_k import BLOCK, blocked_top_k


class TopKSearch:
    """Searches one catalogue any number of times; what an implementation prepares is kept from the first search on.

    table: [V, D]; candidates: bool [V]. Neither may change afterwards.
    """

    def __init__(self, table: Tensor, candidates: Tensor) -> None:
        self.table, self.candidates = table, candidates
        self._catalogue: Any = None

    def top_k(
        self, queries: Tensor, *, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = BLOCK
    ) -> tuple[Tensor, Tensor]:
        """The k candidates with the largest inner product for each query, best first; ties by the lower item index.

        queries: [B, D]; seen: (listener, item) int64 pairs to leave out. Returns items int64 [B, K], 0 where there are
        fewer candidates than k, and their scores [B, K] in fp32, -inf there. float32 on a GPU goes to
        `fuxi_beta.ops.triton.top_k`, everything else to `blocked_top_k`.
        """
        if takes_triton(queries.device):
            from fuxi_beta.ops.triton import top_k as fused

            if fused.takes(queries, self.table, k):
                if self._catalogue is None:
                    self._catalogue = fused.prepare(self.table, self.candidates)
                lists = fused.search(queries, self._catalogue, k=k, seen=seen)
                return lists.items, lists.scores
        return blocked_top_k(queries, self.table, candidates=self.candidates, k=k, seen=seen, block=block)
