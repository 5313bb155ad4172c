"""FuXi-beta (arXiv 2508.10615): a stack of attention-free blocks over a listener's history.

Notable choices, all as in the authors' code: pre-norm with weightless RMSNorm; maps of position and elapsed time
instead of query-key attention; no final norm. Not in the paper, and off by default: further channels of the mixer
(`fuxi_beta.layers.channel`).

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `D` width, `C` = 2 D channels, `K` songs of each listener.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.config import FAST_TEMPORAL, ModelConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.layers.aftm import AFTM
from fuxi_beta.layers.channel import Channel
from fuxi_beta.layers.content import ContentChannel
from fuxi_beta.layers.frab import FRAB, ExpPow
from fuxi_beta.layers.intervals import IntervalChannel
from fuxi_beta.layers.mffn import MFFN, compile_all
from fuxi_beta.layers.periodic import PeriodicChannel
from fuxi_beta.layers.precision import operand_dtype
from fuxi_beta.models.base import NORM_CLAMP, Dropout, ForwardContext, SequenceModel, l2_normalise, last_rows
from fuxi_beta.models.fuxi_alpha import FuXiAlpha
from fuxi_beta.models.reasons import Contributions, Trace
from fuxi_beta.models.registry import register
from fuxi_beta.ops import BlockWeights, Term

_TEMPORAL = {"pow": FRAB, "exppow": ExpPow, "zero": None}


class Block(nn.Module):
    """One FuXi-beta block (section 5.4): y = MFFN(AFTM(RMSNorm(x), t), x + what further channels add)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reach = config.max_history + config.position_margin
        temporal, sparse = _TEMPORAL[config.temporal], config.sparse_positions
        self.mixer = AFTM(config.dim, config.heads, reach, temporal=temporal, sparse_positions=sparse)
        self.channels = nn.ModuleDict()
        if config.content_channel:
            self.channels["content"] = ContentChannel(config.dim)
        if config.periodic_channel:
            self.channels["periodic"] = PeriodicChannel(config.dim)
        if config.interval_channel:
            self.channels["interval"] = IntervalChannel(config.dim)
        self.ffn = MFFN(config.dim, config.ffn_multiply * config.dim)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        if not ctx.dropout.learning and self._is_one_operator():
            by_lag = self.mixer.positional.by_lag(ctx.times.longest, sparse=True)
            return ops.block(x, ctx.times, by_lag, self.mixer.power, self._weights())
        normed = ops.rms_norm(x, None, operand_dtype(x, bf16=self.mixer.bf16))
        mixed = self.mixer(normed, ctx.times, ctx.dropout.mask(), sparse=not ctx.dropout.learning)
        stage_two = ctx.dropout.mask()  # drawn before those of channels, which so leave the other masks as they are
        for channel in self.further_channels():
            x = x + channel(normed, ctx, ctx.dropout.mask())
        return self.ffn(mixed, x, stage_two)

    def _is_one_operator(self) -> bool:
        """Whether `ops.block` computes what `forward` does without dropout."""
        return not self.channels and not self.mixer.bf16 and not torch.is_grad_enabled()

    def _weights(self) -> BlockWeights:
        merge, ffn = self.ffn.merge, self.ffn
        of_mixed = self.mixer.by_map(merge.weight).t()
        return BlockWeights(self.mixer.weight(), of_mixed, merge.bias, ffn.gate_and_up.weight.t(), ffn.down.weight.t())

    def further_channels(self) -> list[Channel]:
        """Those beside position and time."""
        return [channel for channel in self.channels.values() if isinstance(channel, Channel)]


class LastBlock(Trace):
    """The last block at each listener's last token, without dropout; zeros for a listener without tokens.

    Once the gates are known (U, norms, SiLU(W1 m), the length of the state, and queries and keys), a score is linear in
    the value vectors V of the plays and in the residual stream. So it is exactly the sum of what each play's V and the
    stream, with the bias of the MFFN's first stage, contribute.
    """

    def __init__(self, block: Block, x: Tensor, batch: Batch) -> None:
        """x: the block's input [T, D]."""
        self._block, self._batch = block, batch
        normed = ops.rms_norm(x)
        self._row = block.mixer.last(normed, batch)
        self._channels = [(channel, channel.last(normed, batch)) for channel in block.further_channels()]
        self._x = last_rows(x, batch)
        self._stream = sum((row.output for _, row in self._channels), self._x)
        self._state = block.ffn(self._row.output, self._stream, None) * (batch.lengths > 0)[:, None]
        self.vectors = l2_normalise(self._state)

    @override
    def contributions(self, songs: Tensor, rows: Tensor) -> Contributions:
        ffn, row = self._block.ffn, self._row
        towards = songs / self._state[rows].norm(dim=-1).clamp(min=NORM_CLAMP)[:, None, None]
        of_joined = ffn.pull_back(towards, row.output[rows], self._stream[rows])
        terms = self._block.mixer.terms(of_joined @ ffn.merge.weight, row, rows)
        for channel, of_channel in self._channels:
            terms.append(Term(of_channel.addend, channel.pull_back(of_joined, of_channel, rows)))
        remainder = (of_joined @ (self._x[rows] + ffn.merge.bias)[..., None]).squeeze(-1)
        return Contributions(terms, remainder)


class FuXiBeta(SequenceModel):
    """FuXi-beta with FRAB or `ExpPow`, or without the temporal channel, on the fast operators."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        for block in self.blocks:
            x = block(x, ctx)
        return x

    @override
    def encode_last(self, item_vectors: Tensor, batch: Batch) -> Tensor:
        """`forward` without dropout at each listener's last token; zeros for an empty history. [T, D] -> [B, D].

        The last layer computes one row of its maps only.
        """
        return self.trace_last(item_vectors, batch).vectors

    @override
    def trace_last(self, item_vectors: Tensor, batch: Batch) -> LastBlock:
        x = self.embed(item_vectors, batch)
        *body, last = self._blocks()
        ctx = ForwardContext(batch, x, Dropout(None, batch, 0.0))
        for block in body:
            x = block(x, ctx)
        return LastBlock(last, x, batch)

    @override
    def multiply_in_bf16(self) -> None:
        """From now on compute token-wise matrix products in bf16; see `fuxi_beta.layers.precision`."""
        for block in self._blocks():
            for layer in (block.mixer, block.ffn, *block.further_channels()):
                layer.bf16 = True

    @override
    def compile_ffn(self) -> None:
        """From now on run the MFFN of every layer through torch.compile; see `fuxi_beta.layers.mffn.compile_all`."""
        compile_all([block.ffn for block in self._blocks()], self.config.dropout)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def _build(config: ModelConfig) -> SequenceModel:
    """FuXi-beta with the function of elapsed time that the configuration names."""
    if config.temporal in FAST_TEMPORAL:
        return FuXiBeta(config)
    return FuXiAlpha(config, ("position", "time"), config.temporal)


register("fuxi-beta", _build, takes_time=True)
