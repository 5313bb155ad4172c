"""AFTM, the attention-free token mixer (section 5.3, equations 13 and 14), on packed tokens.

The projection and the order of heads are here; all after the projection is the operator `fuxi_beta.ops.token_mixer`.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `D` width, `C` = 2 D channels.
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
from fuxi_beta.ops import PreparedTimes
from fuxi_beta.ops.elapsed import log_elapsed
from fuxi_beta.ops.reference import RMS_EPS, gated


@dataclass(frozen=True)
class LastRow:
    """The mixer at each listener's last token, and the sums over plays that it gates.

    A sum of listener b is sum_j by_position[j] V[j] (D channels), then a sum_j decayed[j] V[j] (D more).
    """

    output: Tensor  # [B, C], in the order of `AFTM.by_head`
    value: Tensor  # V [T, D]
    by_position: Tensor  # [T], the last row of B
    decayed: Tensor | None  # [T], that of B^t without its factor a; None: there is no temporal channel
    gate: Tensor  # U [B, C], [position | time]
    sums: Tensor  # [B, C], [position | time]


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
        power = None if self.temporal is None else self.temporal.power
        return self.by_head(ops.token_mixer(projected, times, by_lag, power, mask))

    def _project(self, normed: Tensor) -> Tensor:
        return normed @ self._weight()

    def _weight(self) -> Tensor:
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
        of_gate, of_value = self._weight().split([2 * self.dim, self.dim], dim=1)
        value = F.silu(product(lambda x: x @ of_value, normed, bf16=self.bf16))
        tokens = torch.arange(len(value), device=value.device)
        ends = batch.offsets[1:][batch.listener]  # [T]

        def row_times_value(weight: Tensor) -> Tensor:  # [T] -> [B, D]
            return F.embedding_bag(tokens, value, batch.offsets[:-1], mode="sum", per_sample_weights=weight)

        by_position = self.positional.by_lag(self.positional.reach, sparse=True)[ends - 1 - tokens]
        of_position, decayed = row_times_value(by_position), None
        if self.temporal is None:
            of_time = torch.zeros_like(of_position)
        else:
            decayed = self.temporal.decayed(log_elapsed(batch.next_timestamp[ends - 1], batch.timestamp, value.dtype))
            of_time = self.temporal.scale * row_times_value(decayed)
        sums = torch.cat([of_position, of_time], dim=-1)
        has_tokens = batch.lengths > 0
        gate = value.new_zeros(batch.num_listeners, 2 * self.dim)
        last_tokens = normed[batch.offsets[1:][has_tokens] - 1]
        gate[has_tokens] = F.silu(product(lambda x: x @ of_gate, last_tokens, bf16=self.bf16))
        return LastRow(self.by_head(gated(gate, sums, None)), value, by_position, decayed, gate, sums)

    def pull_back(self, towards: Tensor, row: LastRow, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """<towards, output> as linear functions of V, with the gate and the norm held at their values.

        towards: [R, K, C] for each of `rows`. It equals the sum over plays j of by_position[j] <first, V[j]> +
        decayed[j] <second, V[j]>; first and second: [R, K, D], second None where there is no temporal channel.
        """
        sums = row.sums[rows]
        factor = row.gate[rows] * (sums.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt()
        first, second = (self._by_map(towards) * factor[:, None]).split(self.dim, dim=-1)
        return first, None if self.temporal is None else second * self.temporal.scale

    def _by_map(self, by_head: Tensor) -> Tensor:
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
