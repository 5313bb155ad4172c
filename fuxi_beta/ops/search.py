"""Exact top-k search of a catalogue as an operator: plain torch (`top_k`), `cpu/top_k` in C++, `triton/top_k` on GPUs.

Shapes: `B` listeners, `V` rows of the item table, `D` width, `K` list length.
"""

from typing import Any

from torch import Tensor

from fuxi_beta.ops import cpu
from fuxi_beta.ops.dispatch import kernels_for, takes_triton
from fuxi_beta.ops.top_k import BLOCK, blocked_top_k, blocked_top_k_of_scores


class TopKSearch:
    """Searches one catalogue any number of times; what an implementation prepares is kept from the first search on.

    table: [V, D]; candidates: bool [V]. Neither may change afterwards.
    """

    def __init__(self, table: Tensor, candidates: Tensor) -> None:
        self.table, self.candidates = table, candidates
        self._catalogues: dict[str, Any] = {}  # by the module that prepared them

    def top_k(
        self, queries: Tensor, *, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = BLOCK
    ) -> tuple[Tensor, Tensor]:
        """The k candidates with the largest inner product for each query, best first; ties by the lower item index.

        queries: [B, D]; seen: (listener, item) int64 pairs to leave out. Returns items int64 [B, K], 0 where there are
        fewer candidates than k, and their scores [B, K] in fp32, -inf there. Raises ValueError if a score that is
        computed is not a number. float32 goes to `fuxi_beta.ops.triton.top_k` on a GPU and to `fuxi_beta.ops.cpu.top_k`
        on the CPU, everything else to `blocked_top_k`.
        """
        fused = self._fused(queries, k)
        if fused is None:
            return blocked_top_k(queries, self.table, candidates=self.candidates, k=k, seen=seen, block=block)
        if fused.__name__ not in self._catalogues:
            self._catalogues[fused.__name__] = fused.prepare(self.table, self.candidates)
        lists = fused.search(queries, self._catalogues[fused.__name__], k=k, seen=seen)
        return lists.items, lists.scores

    def _fused(self, queries: Tensor, k: int) -> Any:
        """The module that searches without a matrix of scores, None where there is none for these arguments."""
        if takes_triton(queries.device):
            from fuxi_beta.ops.triton import top_k as fused
        elif kernels_for(queries, self.table) is cpu:
            from fuxi_beta.ops.cpu import top_k as fused
        else:
            return None
        return fused if fused.takes(queries, self.table, k) else None


def top_k_of_scores(
    scores: Tensor, *, candidates: Tensor, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """`TopKSearch.top_k` of scores that are computed already. scores: [B, V]; float32 on the CPU goes to C++."""
    if k > 0 and kernels_for(scores) is cpu:
        return cpu.top_k_of_scores(scores, candidates=candidates, k=k, seen=seen)
    return blocked_top_k_of_scores(scores, candidates=candidates, k=k, seen=seen, block=block)
