"""Further channels of the token mixer, beside position and time: what each adds to the residual stream.

    [U | ...] = SiLU(n W);   o = W_m [AFTM's output] + bias + x + sum over channels of W_o dropout(U * RMSNorm(Y))

Y [T, D] is a channel's causal sum over a listener's plays, defined by a subclass. U, RMSNorm and W_o are a channel's
own, as in FuXi-Linear (arXiv 2602.23671), where FuXi-alpha has one norm over all channels: so the channels of a model
trained without this one stay exactly what they were, and as W_o starts at zero, such a model plus the channel is the
same function until W_o is learned.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `D` width, `K` songs of each listener.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.precision import product
from fuxi_beta.ops.reference import RMS_EPS


@dataclass(frozen=True)
class ChannelRow:
    """A channel at each listener's last token, where Y is a sum of one addend a play."""

    output: Tensor  # [B, D], what it adds to the residual stream
    addend: Tensor  # [T, D]
    factor: Tensor  # [B, D], U / rms(Y)


class PackedWithIntervals(ops.Packed, Protocol):
    """What channels may ask of a batch."""

    @property
    def intervals(self) -> ops.PreparedTimes:
        """The times of `Batch.at_plays`, for `ops.apply_maps`."""
        ...


class Channel(nn.Module, ABC):
    """W_o dropout(U * RMSNorm(Y)). Subclasses define Y: `gated` at every token, `addends` at the last one."""

    def __init__(self, dim: int, inputs: int) -> None:
        """inputs: channels besides U that W projects."""
        super().__init__()
        self.dim = dim
        self.project = nn.Parameter(torch.empty(dim, dim + inputs).normal_(std=0.02))  # W: D of U, then the inputs
        self.out = nn.Parameter(torch.zeros(dim, dim))  # W_o
        self.bf16 = False  # both products; never the sum

    @abstractmethod
    def gated(self, projected: Tensor, packed: PackedWithIntervals, mask: Mask | None) -> Tensor:
        """U * RMSNorm(Y), dropped out if there is a mask; projected before its SiLU. [T, D + inputs] -> [T, D]."""

    @abstractmethod
    def addends(self, inputs: Tensor, batch: Batch) -> Tensor:
        """What each play adds to Y at its listener's last token; inputs after their SiLU. [T, inputs] -> [T, D]."""

    def forward(self, normed: Tensor, packed: PackedWithIntervals, mask: Mask | None) -> Tensor:
        """normed: RMSNorm(x) [T, D] -> what the channel adds to the residual stream [T, D]."""
        return self._output(self.gated(product(self._project, normed, bf16=self.bf16), packed, mask))

    def last(self, normed: Tensor, batch: Batch) -> ChannelRow:
        """`forward` at each listener's last token, without dropout; zeros for a listener without tokens."""
        of_gate, of_inputs = self.project.split([self.dim, self.project.shape[1] - self.dim], dim=1)
        inputs = F.silu(product(lambda x: x @ of_inputs, normed, bf16=self.bf16))
        addend = self.addends(inputs, batch)
        sums = addend.new_zeros(batch.num_listeners, self.dim).index_add_(0, batch.listener, addend)
        factor = torch.zeros_like(sums)
        has_tokens = batch.lengths > 0
        last_tokens = normed[(batch.offsets[1:] - 1)[has_tokens]]
        factor[has_tokens] = F.silu(product(lambda x: x @ of_gate, last_tokens, bf16=self.bf16))
        factor *= (sums.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt()
        return ChannelRow(self._output(factor * sums), addend, factor)

    def pull_back(self, towards: Tensor, row: ChannelRow, rows: Tensor) -> Tensor:
        """<towards, output> as a linear function of the addends, with U and the norm held at their values.

        towards: [R, K, D] for each of `rows`. It is the sum over plays j of <result, addend[j]>. [R, K, D].
        """
        return towards @ self.out.t() * row.factor[rows][:, None]

    def _project(self, normed: Tensor) -> Tensor:
        return normed @ self.project

    def _output(self, mixed: Tensor) -> Tensor:
        return product(lambda x: x @ self.out, mixed, bf16=self.bf16)
