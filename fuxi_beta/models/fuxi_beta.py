"""FuXi-beta (arXiv 2508.10615): a stack of attention-free blocks over a listener's history.

Notable choices, all as in the authors' code: pre-norm with weightless RMSNorm; maps of position and elapsed time
instead of query-key attention; no final norm.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `n` plays of the longest of the R, `D` width, `C` = 2 D
channels, `K` songs of each listener.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.layers.aftm import AFTM
from fuxi_beta.layers.mffn import MFFN, compile_all
from fuxi_beta.layers.precision import operand_dtype
from fuxi_beta.models.base import NORM_CLAMP, Dropout, ForwardContext, SequenceModel, l2_normalise, last_rows
from fuxi_beta.models.fuxi_alpha import FuXiAlpha
from fuxi_beta.models.reasons import Contributions, Trace, gathered
from fuxi_beta.models.registry import register
from fuxi_beta.ops import PreparedTimes


class Block(nn.Module):
    """One FuXi-beta block (section 5.4): y = MFFN(AFTM(RMSNorm(x), t), x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reach = config.max_history + config.position_margin
        self.mixer = AFTM(config.dim, config.heads, reach, temporal=config.temporal != "zero")
        self.ffn = MFFN(config.dim, config.ffn_multiply * config.dim)

    def forward(self, x: Tensor, times: PreparedTimes, dropout: Dropout) -> Tensor:
        """[T, D] -> [T, D]."""
        normed = ops.rms_norm(x, None, operand_dtype(x, bf16=self.mixer.bf16))
        return self.ffn(self.mixer(normed, times, dropout.mask()), x, dropout.mask())


class LastBlock(Trace):
    """The last block at each listener's last token, without dropout; zeros for a listener without tokens.

    Once the gates are known (U, both norms, SiLU(W1 m), the length of the state), a score is linear in the value
    vectors V of the plays and in the residual stream. So it is exactly the sum of what each play's V and the stream,
    with the bias of the MFFN's first stage, contribute.
    """

    def __init__(self, block: Block, x: Tensor, batch: Batch) -> None:
        """x: the block's input [T, D]."""
        self._block, self._batch = block, batch
        self._row = block.mixer.last(ops.rms_norm(x), batch)
        self._x = last_rows(x, batch)
        self._state = block.ffn(self._row.output, self._x, None) * (batch.lengths > 0)[:, None]
        self.vectors = l2_normalise(self._state)

    @override
    def contributions(self, songs: Tensor, rows: Tensor) -> Contributions:
        mixer, ffn, row = self._block.mixer, self._block.ffn, self._row
        towards = songs / self._state[rows].norm(dim=-1).clamp(min=NORM_CLAMP)[:, None, None]
        of_mixed, remainder = ffn.pull_back(towards, row.output[rows], self._x[rows])
        by_position, by_time = mixer.pull_back(of_mixed, row, rows)
        lengths = self._batch.lengths[rows, None]
        step = torch.arange(int(lengths.max()), device=rows.device)
        there = step < lengths
        tokens = (self._batch.offsets[rows, None] + step) * there  # [R, n]
        value = gathered(row.value, tokens)
        weight = (value @ by_position.mT).mul_((gathered(row.by_position, tokens) * there)[..., None])
        if by_time is not None and row.decayed is not None:
            weight.addcmul_(value @ by_time.mT, (gathered(row.decayed, tokens) * there)[..., None])
        return Contributions(tokens.masked_fill_(~there, -1), weight, remainder)


class FuXiBeta(SequenceModel):
    """FuXi-beta with FRAB or without the temporal channel, on the fast operators."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        for block in self.blocks:
            x = block(x, ctx.times, ctx.dropout)
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
        if body:
            times = ops.prepare_times(batch, like=x)
            for block in body:
                x = block(x, times, Dropout(None, batch, 0.0))
        return LastBlock(last, x, batch)

    @override
    def multiply_in_bf16(self) -> None:
        """From now on compute token-wise matrix products in bf16; see `fuxi_beta.layers.precision`."""
        for block in self._blocks():
            block.mixer.bf16 = block.ffn.bf16 = True

    @override
    def compile_ffn(self) -> None:
        """From now on run the MFFN of every layer through torch.compile; see `fuxi_beta.layers.mffn.compile_all`."""
        compile_all([block.ffn for block in self._blocks()], self.config.dropout)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def _build(config: ModelConfig) -> SequenceModel:
    """FuXi-beta with the function of elapsed time that the configuration names."""
    if config.temporal in {"pow", "zero"}:
        return FuXiBeta(config)
    return FuXiAlpha(config, ("position", "time"), config.temporal)


register("fuxi-beta", _build, takes_time=True)
