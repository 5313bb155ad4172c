"""AFTM, the attention-free token mixer (section 5.3, equations 13 and 14), on packed tokens.

The projection and the order of heads are here; all after the projection is the operator `fuxi_beta.ops.token_mixer`.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `D` width, `C` = 2 D channels, `K` songs of each listener.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.layers.precision import product
from fuxi_beta.layers.rab import RAB
from fuxi_beta.ops import LastRows, PreparedTimes, Term
from fuxi_beta.ops.block import rows_of_value
from fuxi_beta.ops.reference import RMS_EPS, gated
from fuxi_beta.ops.token_mixer import Power


@dataclass(frozen=True)
class LastRow:
    """The mixer at each listener's last token, and the sums over plays that it gates."""

    output: Tensor  # [B, C], in the order of `AFTM.by_head`
    gate: Tensor  # U [B, C], [position | time]
    rows: LastRows


class AFTM(nn.Module):
    """[U | V] = SiLU(n W);  output U * RMSNorm(concat(B V, B^t V)), B by `RAB` and B^t by `FRAB`.

    V has D channels and both maps read the same V, as in Table 1's 5nd^2 and the authors' code; "2d" for W_v below
    equation 13 is an error. No softmax and no 1/n. Heads share the maps, so they only order the channels:
    [position | time] head by head.
    """

    def __init__(
        self, dim: int, heads: int, reach: int, *, temporal: type[FRAB] | None, sparse_positions: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.project = nn.Parameter(torch.empty(dim, 3 * dim).normal_(std=0.02))  # W: 2 D of U, then D of V
        self.positional = RAB(reach, sparse=sparse_positions)
        self.temporal = temporal() if temporal else None
        self.bf16 = False  # the projection; never the maps

    def forward(self, normed: Tensor, times: PreparedTimes, mask: Mask | None, *, sparse: bool = False) -> Tensor:
        """normed: RMSNorm(x) [T, D] -> [T, C], dropped out if there is a mask. sparse: as of `RAB.by_lag`."""
        projected = product(self._project, normed, bf16=self.bf16)
        by_lag = self.positional.by_lag(times.longest, sparse=sparse)
        return self.by_head(ops.token_mixer(projected, times, by_lag, self.power, mask))

    @property
    def power(self) -> Power | None:
        """Of the temporal channel, as operators take it; None if there is none."""
        return None if self.temporal is None else self.temporal.power

    def _project(self, normed: Tensor) -> Tensor:
        return normed @ self.weight()

    def weight(self) -> Tensor:
        """W with the columns of U in the order [position | time] for any number of heads. [D, 3 D]."""
        if self.heads == 1:
            return self.project
        gate, value = self.project.split([2 * self.dim, self.dim], dim=1)
        split = gate.view(self.dim, self.heads, 2, self.dim // self.heads)
        return torch.cat([split.transpose(1, 2).flatten(1), value], dim=1)

    def last(self, normed: Tensor, batch: Batch) -> LastRow:
        """`forward`, `sparse`, at each listener's last token, at the cost of one row of the maps. normed: [T, D].

        Rows of listeners without tokens are zeros.
        """
        of_gate, of_value = self.weight().split([2 * self.dim, self.dim], dim=1)
        by_lag = self.positional.by_lag(batch.longest, sparse=True)
        if self.bf16:
            value = F.silu(product(lambda x: x @ of_value, normed, bf16=True))
            rows = rows_of_value(value, batch, by_lag, self.power)
        else:
            rows = ops.last_rows(normed, of_value, batch, by_lag, self.power)
        has_tokens = batch.lengths > 0
        gate = normed.new_zeros(batch.num_listeners, 2 * self.dim)
        last_tokens = normed[batch.offsets[1:][has_tokens] - 1]
        gate[has_tokens] = F.silu(product(lambda x: x @ of_gate, last_tokens, bf16=self.bf16))
        return LastRow(self.by_head(gated(gate, rows.sums, None)), gate, rows)

    def terms(self, towards: Tensor, row: LastRow, rows: Tensor) -> list[Term]:
        """<towards, output> as a sum over plays, linear in V, with the gate and the norm held at their values.

        towards: [R, K, C] for each of `rows`. A term for the plays' positions, and one for the elapsed times where
        there is a temporal channel.
        """
        sums, of = row.rows.sums[rows], row.rows
        factor = row.gate[rows] * (sums.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt()
        first, second = (self.by_map(towards) * factor[:, None]).split(self.dim, dim=-1)
        found = [Term(of.value, first, of.by_position)]
        if self.temporal is not None:
            found.append(Term(of.value, second * self.temporal.scale, of.decayed))
        return found

    def by_map(self, by_head: Tensor) -> Tensor:
        """The inverse of `by_head`. [..., C] -> [..., C]."""
        if self.heads == 1:
            return by_head
        split = by_head.view(*by_head.shape[:-1], self.heads, 2, self.dim // self.heads)
        return split.transpose(-3, -2).flatten(-3)

    def by_head(self, mixed: Tensor) -> Tensor:
        """Channels [position | time] -> [position of head h | time of head h] for each h. [..., C] -> [..., C]."""
        if self.heads == 1:
            return mixed
        split = mixed.view(*mixed.shape[:-1], 2, self.heads, self.dim // self.heads)
        return split.transpose(-3, -2).flatten(-3)
