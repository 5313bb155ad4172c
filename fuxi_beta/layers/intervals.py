"""The interval channel: plays weigh more the nearer they are to the newest play before the prediction, in time.

    Y_n = sum over m <= n of (1 + t_n - t_m)^(-b) v_m

FRAB's power law (section 5.2) between plays, as TiSASRec's intervals are (doi 10.1145/3336191.3371786), and not back
from the time t_{n+1} of what is predicted. A list made once a day at a fixed hour knows these times exactly, whereas
from that hour all plays of an evening are about as long ago. No factor a: the norm behind would undo it.
`fuxi_beta.ops.apply_maps` computes it.

Shapes: `T` packed tokens, `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.channel import Channel, PackedWithIntervals
from fuxi_beta.layers.frab import uniform
from fuxi_beta.ops.elapsed import log_elapsed
from fuxi_beta.ops.reference import gated


class IntervalChannel(Channel):
    """One power law a layer, on a projection V of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)  # v
        self.decay = uniform(0.4, 0.8)  # b, which starts as FRAB's

    @override
    def gated(self, projected: Tensor, packed: PackedWithIntervals, mask: Mask | None) -> Tensor:
        gate, value = F.silu(projected.to(self.decay.dtype)).chunk(2, dim=1)
        times = packed.intervals
        no_positions, power = self.decay.new_zeros(times.longest), (self.decay.new_ones(()), self.decay)
        sums = ops.apply_maps(value.contiguous(), times, no_positions, power)[:, self.dim :]
        return gated(gate, sums, mask).to(projected.dtype)

    @override
    def addends(self, inputs: Tensor, batch: Batch) -> Tensor:
        newest = batch.timestamp[batch.offsets[1:][batch.listener] - 1]
        weight = torch.exp(-self.decay * log_elapsed(newest, batch.timestamp, inputs.dtype))
        return weight[:, None] * inputs
