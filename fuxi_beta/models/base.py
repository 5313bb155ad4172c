"""The base of every sequence model: packed tokens in, one vector a position out.

A model defines in `encode` how its layers turn tokens into states; everything around it is the same for all models, as
in the paper's comparison: item vectors times sqrt(D) plus a learned position, dropout, L2-normalised output. The item
table is not part of a network: it may be sharded (`fuxi_beta.training.item_table`), so its vectors are an argument.

Shapes: `B` listeners, `T` packed tokens, `D` width, `n` padded length of a group of `G` listeners.
"""

from abc import ABC, abstractmethod
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import DROPOUT, DropoutKey, Mask
from fuxi_beta.layers.elapsed_functions import Mixed
from fuxi_beta.layers.frab import FRAB, TemporalFunction
from fuxi_beta.models.reasons import Trace
from fuxi_beta.ops import PreparedTimes
from fuxi_beta.ops.elapsed import Elapsed

NORM_CLAMP = 1e-6


def l2_normalise(x: Tensor) -> Tensor:
    """Rows divided by their length, or by `NORM_CLAMP` if that is more."""
    return F.normalize(x, dim=-1, eps=NORM_CLAMP)


class Dropout:
    """Counter-based dropout of one forward pass: its sites are numbered in the order in which they are called."""

    def __init__(self, key: DropoutKey | None, batch: Batch, rate: float) -> None:
        self.learning = key is not None  # what a pass without dropout is for: lists, and not a training step
        self.active = key is not None and rate > 0
        self.rate, self.site = rate, DROPOUT
        if key is not None and self.active:
            token = ops.combine(key.seed, key.epoch, batch.sample)[batch.listener]
            self.token = ops.combine(token, batch.position)

    def mask(self, rate: float | None = None) -> Mask | None:
        """The mask of the next site; None if nothing is dropped. rate: of this site, if it differs."""
        self.site += 1
        return Mask(ops.combine(self.token, self.site), self.rate if rate is None else rate) if self.active else None

    def __call__(self, x: Tensor, rate: float | None = None) -> Tensor:
        """Drop out the channels of packed tokens [T, C] at the next site."""
        mask = self.mask(rate)
        return x if mask is None else ops.dropout(x, mask)


class ForwardContext:
    """What the layers share in one forward pass over a batch; everything is computed at first use."""

    def __init__(self, batch: Batch, like: Tensor, dropout: Dropout) -> None:
        self.batch, self.dropout, self._like = batch, dropout, like

    @cached_property
    def times(self) -> PreparedTimes:
        """The times of the batch, for `ops.token_mixer` and `ops.apply_maps`."""
        return ops.prepare_times(self.batch, like=self._like)

    @property
    def intervals(self) -> PreparedTimes:
        """The times between the plays of the batch, for `ops.apply_maps`."""
        return self._intervals

    @cached_property
    def _intervals(self) -> PreparedTimes:
        return ops.prepare_times(self.batch.at_plays, like=self._like)

    @property
    def padding(self) -> Padding:
        """Listeners of like length, padded together."""
        return self._padding

    @cached_property
    def _padding(self) -> Padding:
        return Padding(self.batch)

    @cached_property
    def elapsed(self) -> list[Elapsed]:
        """The elapsed times of each group of `padding`."""
        return [Elapsed(self.batch, group, self._like.dtype) for group in self.padding.groups]


class SequenceModel(nn.Module, ABC):
    """A network without its item table. Subclasses define `encode` and may define a faster `encode_last`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        reach = config.max_history + config.position_margin
        self.positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(reach, config.dim)))

    def forward(self, item_vectors: Tensor, batch: Batch, *, key: DropoutKey | None = None) -> Tensor:
        """The predicted vector of each position's next item. Raw item vectors [T, D] -> L2-normalised [T, D].

        Without a key there is no dropout, whether the module is in training mode or not. Raises ValueError for a
        context longer than `max_history`.
        """
        dropout = Dropout(key, batch, self.config.dropout)
        x = dropout(self.embed(item_vectors, batch), self.embedding_dropout)
        return l2_normalise(self.encode(x, ForwardContext(batch, x, dropout)))

    @property
    def embedding_dropout(self) -> float:
        """Rate of the dropout of the embedded tokens."""
        return self.config.dropout

    @abstractmethod
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """The layers: embedded tokens [T, D] -> states [T, D], each listener's tokens independent of all others'.

        State i may depend on tokens up to i, and on times up to t_{i+1} if the model takes times.
        """

    def encode_last(self, item_vectors: Tensor, batch: Batch) -> Tensor:
        """`forward` without dropout at each listener's last token; zeros for an empty history. [T, D] -> [B, D]."""
        return last_rows(self(item_vectors, batch), batch)

    def trace_last(self, item_vectors: Tensor, batch: Batch) -> Trace | None:
        """`encode_last` with what its vectors are made of; None for a model that cannot say, as by default."""
        return None

    def embed(self, item_vectors: Tensor, batch: Batch) -> Tensor:
        """Equation 10: item vectors times sqrt(D) plus the vector of the position, 0 = oldest retained event."""
        if batch.longest > self.config.max_history:
            raise ValueError(f"a context has {batch.longest} tokens: cut it to max_history ({self.config.max_history})")
        return item_vectors * self.config.dim**0.5 + F.embedding(batch.position, self.positions)

    def temporal_curves(self) -> list[tuple[float, float]]:
        """(a, b) of a (1 + x)^(-b) of each layer, empty for a model without that function."""
        return [(m.scale.item(), m.decay.item()) for m in self.modules() if type(m) is FRAB]

    def temporal_weights(self, seconds: Tensor) -> list[Tensor]:
        """Each layer's function of elapsed time at some seconds, same shape; empty for a model without one."""
        mixed = {part for m in self.modules() if isinstance(m, Mixed) for part in m.parts}
        return [m.curve(seconds) for m in self.modules() if isinstance(m, TemporalFunction) and m not in mixed]

    def multiply_in_bf16(self) -> None:
        """From now on compute token-wise matrix products in bf16. ValueError if the model does not offer it."""
        raise ValueError(f"train.precision=bf16 is offered by fuxi-beta alone, not by {self.config.name}: use fp32")

    def compile_ffn(self) -> None:
        """From now on run the feed-forward part through torch.compile. ValueError if the model does not offer it."""
        raise ValueError(f"train.compile is offered by fuxi-beta alone, not by {self.config.name}: switch it off")


def last_rows(x: Tensor, batch: Batch) -> Tensor:
    """Each listener's last token, zeros for one without tokens. [T, D] -> [B, D]."""
    has_tokens = batch.lengths > 0
    rows = x.new_zeros(batch.num_listeners, x.shape[1])
    rows[has_tokens] = x[(batch.offsets[1:] - 1)[has_tokens]]
    return rows
