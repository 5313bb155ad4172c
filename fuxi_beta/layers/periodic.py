"""The periodic channel: plays weigh more the nearer the request is to a whole period after them.

    Y_n = sum over m <= n of gamma_k^(w_k x) sin(w_k x) v_m, or cos(w_k x),   x = t_{n+1} - t_m, w_k = 2 pi / P_k

after FuXi-Linear's temporal channel (arXiv 2602.23671), whose periods are powers of a base; here (choice) they are
people's: an hour, a day and a week. FRAB falls with elapsed time; this channel tells a listener's mornings from the
evenings. `fuxi_beta.ops.periodic` computes it.

Shapes: `T` packed tokens, `D` width, `K` periods.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.channel import Channel

PERIODS = (3600, 86_400, 604_800)
"""P in seconds."""
_PERIODS_TO_FORGET = 4


class Damping(nn.Module):
    """gamma_k = sigmoid(c_k), the share that is left of a wave after P_k / 2 pi."""

    def __init__(self, periods: tuple[int, ...], start: float) -> None:
        """start: gamma at the start; c is normal around it, standard deviation 0.02."""
        super().__init__()
        self.raw = nn.Parameter(torch.empty(len(periods)).normal_(mean=math.log(start / (1 - start)), std=0.02))  # c
        speed = 2 * math.pi / torch.tensor(periods, dtype=torch.float64)
        self.register_buffer("speed", speed, persistent=False)  # w; on the device, so that no step sends it there

    def forward(self) -> Tensor:
        """r = -w ln(gamma), per second: gamma^(w x) = e^(-r x). [K]."""
        return -F.logsigmoid(self.raw) * self.get_buffer("speed").to(self.raw.dtype)


class PeriodicChannel(Channel):
    """Sines and cosines of every period, each on its share of the channels.

    (choice) Waves start by falling e-fold in four periods; published is gamma = 1/2, of which a period leaves 1.3 %.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)  # v
        self.damping = Damping(PERIODS, math.exp(-1 / (2 * math.pi * _PERIODS_TO_FORGET)))

    @override
    def gated(self, projected: Tensor, packed: ops.Packed, mask: Mask | None) -> Tensor:
        return ops.periodic(projected, self.damping(), PERIODS, packed, mask)

    @override
    def addends(self, inputs: Tensor, batch: Batch) -> Tensor:
        asked = batch.next_timestamp[batch.offsets[1:][batch.listener] - 1]
        x = (asked - batch.timestamp)[:, None]
        period = torch.tensor(PERIODS, device=x.device)
        phase = x.remainder(period).to(inputs.dtype) * (2 * math.pi / period)
        left = torch.exp(-self.damping() * x.clamp(min=0).to(inputs.dtype))  # [T, K]
        weight = torch.cat([left * phase.sin(), left * phase.cos()], dim=1)  # [T, 2 K]
        bounds = torch.tensor(ops.channel_bounds(self.dim, len(PERIODS)), device=x.device)
        return weight.repeat_interleave(bounds.diff(), dim=1) * inputs
