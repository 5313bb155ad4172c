"""FuXi-beta (arXiv 2508.10615): a stack of attention-free blocks over a listener's history.

Notable choices, all of the authors' code: item vectors times sqrt(D) plus a learned position; pre-norm with weightless
RMSNorm; maps of position and elapsed time instead of query-key attention; no final norm; L2-normalised output. The
item table is not part of the network: it may be sharded (`embedding`), so its vectors come in as an argument.

Shapes: `B` listeners, `T` packed tokens, `D` width, `C` = 2 D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import keyed, ops
from fuxi_beta.batches import Batch
from fuxi_beta.config import ModelConfig
from fuxi_beta.ffn import MultistageFFN, compile_all
from fuxi_beta.keyed import DropoutKey, Mask
from fuxi_beta.mixer import TokenMixer
from fuxi_beta.ops import Gaps

NORM_CLAMP = 1e-6


def l2_normalise(x: Tensor) -> Tensor:
    """Rows of length one; rows shorter than the clamp stay short."""
    return F.normalize(x, dim=-1, eps=NORM_CLAMP)


class Dropout:
    """Keyed dropout of one pass: sites are numbered in the order they are met."""

    def __init__(self, key: DropoutKey | None, batch: Batch, rate: float) -> None:
        self.active = key is not None and rate > 0
        self.rate, self.site = rate, keyed.DROPOUT
        if key is not None and self.active:
            token = keyed.combine(key.seed, key.epoch, batch.sample)[batch.listener]
            self.token = keyed.combine(token, batch.position)

    def mask(self) -> Mask | None:
        """The mask of the next site; None where nothing is dropped."""
        self.site += 1
        return Mask(keyed.combine(self.token, self.site), self.rate) if self.active else None


class Block(nn.Module):
    """One FuXi-beta block (section 5.4): y = MFFN(AFTM(RMSNorm(x), t), x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reach = config.max_history + config.position_margin
        self.mixer = TokenMixer(config.dim, config.heads, reach, temporal=config.temporal != "zero")
        self.ffn = MultistageFFN(config.dim, config.ffn_multiply * config.dim)

    def forward(self, x: Tensor, gaps: Gaps, dropout: Dropout) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.ffn(self.mixer(ops.rms_norm(x), gaps, dropout.mask()), x, dropout.mask())

    def last(self, x: Tensor, batch: Batch) -> Tensor:
        """`forward` at each listener's last token only, without dropout. [T, D] -> [B, D], zeros where no token is."""
        has_tokens = batch.lengths > 0
        x_of_last = x.new_zeros(batch.num_listeners, x.shape[1])
        x_of_last[has_tokens] = x[(batch.offsets[1:] - 1)[has_tokens]]
        return self.ffn(self.mixer.last(ops.rms_norm(x), batch), x_of_last, None) * has_tokens[:, None]


class FuXiBeta(nn.Module):
    """The network without its item table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        reach = config.max_history + config.position_margin
        self.positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(reach, config.dim)))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, item_vectors: Tensor, batch: Batch, *, key: DropoutKey | None = None) -> Tensor:
        """What each position expects next. Raw item vectors of the tokens [T, D] -> L2-normalised [T, D].

        Without a key there is no dropout, whether the module is in training mode or not. Raises ValueError for a
        context longer than `max_history`.
        """
        dropout = Dropout(key, batch, self.config.dropout)
        x, mask = self.embed(item_vectors, batch), dropout.mask()
        x = x if mask is None else ops.dropout(x, mask)
        gaps = ops.gaps(batch, like=x)
        for block in self.blocks:
            x = block(x, gaps, dropout)
        return l2_normalise(x)

    def encode_last(self, item_vectors: Tensor, batch: Batch) -> Tensor:
        """`forward` without dropout at each listener's last token; zeros for an empty history. [T, D] -> [B, D].

        The last layer computes one row of its maps only.
        """
        x = self.embed(item_vectors, batch)
        if len(self.blocks) > 1:
            gaps = ops.gaps(batch, like=x)
            for block in list(self.blocks)[:-1]:
                x = block(x, gaps, Dropout(None, batch, 0.0))
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return l2_normalise(last.last(x, batch))

    def embed(self, item_vectors: Tensor, batch: Batch) -> Tensor:
        """Equation 10: item vectors times sqrt(D) plus the vector of the position, 0 = oldest retained event."""
        if batch.longest > self.config.max_history:
            raise ValueError(f"a context has {batch.longest} tokens: cut it to max_history ({self.config.max_history})")
        return item_vectors * self.config.dim**0.5 + F.embedding(batch.position, self.positions)

    def multiply_in_bf16(self) -> None:
        """From now on take the token-wise matrix products in bf16; see `fuxi_beta.precision`."""
        for block in self._blocks():
            block.mixer.bf16 = block.ffn.bf16 = True

    def compile_ffn(self) -> None:
        """From now on run the MFFN of every layer through torch.compile; see `fuxi_beta.ffn.compile_all`."""
        compile_all([block.ffn for block in self._blocks()], self.config.dropout)

    def temporal_curves(self) -> list[tuple[float, float]]:
        """(a, b) of a (1 + x)^(-b) of each layer; empty when the temporal channel is off."""
        powers = [block.mixer.temporal for block in self._blocks()]
        return [(power.scale.item(), power.decay.item()) for power in powers if power is not None]

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
