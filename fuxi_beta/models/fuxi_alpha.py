"""FuXi-alpha (arXiv 2502.03036) and every step from it to FuXi-beta: a block of up to three channels.

    [U | V (| Q | K)] = SiLU(RMSNorm(x) W);  y = MFFN(U * RMSNorm(concat of the channels), x)

    channel    map
    position   B, one learned weight a distance (equation 8)
    time       B^t, a function of elapsed time: buckets in FuXi-alpha, FRAB in FuXi-beta (equations 8, 11)
    content    SiLU(Q K^T) / (N + 11)

All channels read the same V, U is as wide as all channels together, and channels are ordered head by head. `position`
and `time` with FRAB are FuXi-beta, which has a faster implementation (`fuxi_beta`); here they serve Table 6's other
functions. Queries and keys are projected only if there is a content channel.

Shapes: `T` packed tokens, `D` width, `C` channels in all, `n` padded length of a group of `G` listeners.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig, TemporalName
from fuxi_beta.layers.elapsed_functions import FUNCTIONS
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.layers.mffn import MFFN
from fuxi_beta.layers.rab import RAB
from fuxi_beta.models.attention import causal_maps, silu_scores
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.registry import register
from fuxi_beta.models.stack import Stack
from fuxi_beta.ops.reference import apply_map, toeplitz

Channel = Literal["position", "time", "content"]


class ChannelMixer(nn.Module):
    """U * RMSNorm(concat of the channels)."""

    def __init__(self, config: ModelConfig, channels: tuple[Channel, ...], temporal: TemporalName) -> None:
        super().__init__()
        self.dim, self.heads, self.channels = config.dim, config.heads, channels
        self.reach = config.max_history + config.position_margin
        width = len(channels) + 1 + 2 * ("content" in channels)  # U, V and maybe Q and K
        self.project = nn.Parameter(torch.empty(config.dim, width * config.dim).normal_(std=0.02))
        self.positional = RAB(self.reach) if "position" in channels else None
        self.temporal = FUNCTIONS[temporal]() if "time" in channels else None

    def forward(self, normed: Tensor, ctx: ForwardContext) -> Tensor:
        """RMSNorm(x) [T, D] -> [T, C]."""
        projected = F.silu(normed @ self.project)
        width = len(self.channels) * self.dim
        gate, (value, *query_key) = projected[:, :width], projected[:, width:].split(self.dim, dim=1)
        mixed = self._position_and_frab(value, ctx)
        mixed += [self._mix(channel, value, query_key, ctx) for channel in self.channels[len(mixed) :]]
        return gate * ops.rms_norm(self._by_head(mixed))

    def _position_and_frab(self, value: Tensor, ctx: ForwardContext) -> list[Tensor]:
        """The first two channels in one operator if they are FuXi-beta's, for which there are kernels; else none."""
        if self.channels[:2] != ("position", "time") or self.positional is None or not isinstance(self.temporal, FRAB):
            return []
        by_lag = self.positional.by_lag(ctx.times.longest)
        return list(ops.apply_maps(value, ctx.times, by_lag, self.temporal.power).chunk(2, dim=1))

    def _mix(self, channel: Channel, value: Tensor, query_key: list[Tensor], ctx: ForwardContext) -> Tensor:
        """One channel's map times V. [T, D] -> [T, D]."""
        if channel == "content":
            return causal_maps((*query_key, value), self.heads, ctx, silu_scores(None, self.reach))
        if channel == "position":
            positional = self.positional
            assert positional is not None
            return ctx.padding.each(value, lambda v, _: apply_map(toeplitz(positional.by_lag(len(v))), v))
        temporal = self.temporal
        assert temporal is not None
        return ctx.padding.each(value, lambda v, number: apply_map(temporal(ctx.elapsed[number]), v))

    def _by_head(self, mixed: list[Tensor]) -> Tensor:
        """Channels [T, D] each -> [T, C] as [first of head h | second of head h | ...] for each h."""
        if self.heads == 1:
            return torch.cat(mixed, dim=1)
        return torch.stack([channel.unflatten(1, (self.heads, -1)) for channel in mixed], dim=2).flatten(1)


class Block(nn.Module):
    """y = MFFN(mixer(RMSNorm(x)), x)."""

    def __init__(self, config: ModelConfig, channels: tuple[Channel, ...], temporal: TemporalName) -> None:
        super().__init__()
        self.mixer = ChannelMixer(config, channels, temporal)
        self.ffn = MFFN(config.dim, config.ffn_multiply * config.dim, channels=len(channels))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        mixed = ctx.dropout(self.mixer(ops.rms_norm(x), ctx))
        return self.ffn(mixed, x, ctx.dropout.mask())


class FuXiAlpha(Stack):
    """A stack of blocks with the given channels and function of elapsed time."""

    def __init__(
        self,
        config: ModelConfig,
        channels: tuple[Channel, ...] = get_args(Channel),
        temporal: TemporalName = "bucket",
    ) -> None:
        super().__init__(config, lambda: Block(config, channels, temporal))


register("fuxi-alpha", FuXiAlpha, takes_time=True)
register("fuxi-beta-frab", lambda config: FuXiAlpha(config, temporal="pow"), takes_time=True)
register("fuxi-beta-aftm", lambda config: FuXiAlpha(config, ("position", "time")), takes_time=True)
register("fuxi-beta-frab-no-position", lambda config: FuXiAlpha(config, ("time", "content"), "pow"), takes_time=True)
register("fuxi-beta-frab-no-time", lambda config: FuXiAlpha(config, ("position", "content")), takes_time=False)
