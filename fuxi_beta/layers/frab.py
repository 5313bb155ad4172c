"""The functions of elapsed time that the paper compares in FRAB (section 6.4.2, Table 6), and HSTU's buckets.

Each maps x = max(t_{i+1} - t_j, 0), in seconds, to the weight of event j at row i; above the diagonal it is zero. The
time of row i is that of the event being predicted. FuXi-beta's own power function also has kernels (`ops`); here it is
one of nine.

Shapes: `n` padded length of a group of `G` listeners. Row i is the event that predicts, column j the event it looks
back at.
"""

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Group

BUCKETS = 129
_BUCKET_WIDTH = 0.301  # of the natural logarithm
_NN_WIDTH = 5


class Elapsed:
    """x of every pair of a group in the forms the functions need, each made once a batch and shared by all layers."""

    def __init__(self, batch: Batch, group: Group, dtype: torch.dtype) -> None:
        self._batch, self._group, self._dtype = batch, group, dtype

    @cached_property
    def _gap(self) -> Tensor:
        """t_{i+1} - t_j in integers: Unix seconds in fp32 are 64 s apart. int64 [G, n, n]."""
        asked, seen = (self._group.by_listener(t) for t in (self._batch.next_timestamp, self._batch.timestamp))
        return asked[:, :, None] - seen[:, None, :]

    @cached_property
    def seconds(self) -> Tensor:
        """x, and 0 above the diagonal. [G, n, n]."""
        return self._gap.clamp(min=0).to(self._dtype).tril_()

    @cached_property
    def log(self) -> Tensor:
        """log(1 + x), and 0 above the diagonal. [G, n, n]."""
        return self.seconds.log1p()

    @cached_property
    def bucket(self) -> Tensor:
        """floor(ln(max(|x|, 1)) / 0.301) up to 128, and `BUCKETS` above the diagonal. int64 [G, n, n]."""
        bucket = bucket_of(self._gap)
        above = torch.ones(bucket.shape[1:], dtype=torch.bool, device=bucket.device).triu_(1)
        return bucket.masked_fill_(above, BUCKETS)


def bucket_of(gap: Tensor) -> Tensor:
    """HSTU's bucket of a time difference: floor(ln(max(|x|, 1)) / 0.301), at most 128. int64, same shape."""
    return (gap.abs().clamp_(min=1).double().log_() / _BUCKET_WIDTH).long().clamp_(max=BUCKETS - 1)


class TemporalFunction(nn.Module):
    """f(x). Subclasses give `curve`; parameters are scalars, one set a layer."""

    def curve(self, x: Tensor) -> Tensor:
        """f of seconds, any shape."""
        raise NotImplementedError

    def forward(self, elapsed: Elapsed) -> Tensor:
        """The causal map of a group. [G, n, n]."""
        return self.curve(elapsed.seconds).tril()


def _uniform(low: float, high: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(()).uniform_(low, high))


class Linear(TemporalFunction):
    """f(x) = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = _uniform(-0.01, 0.01), _uniform(-0.2, 0.2)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


class Log(TemporalFunction):
    """f(x) = a log(1 + b x) + c, with b > 0 itself as the authors' code has it, where the paper writes exp(b)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _uniform(-0.01, 0.01), _uniform(0.5, 1.0), _uniform(-0.05, 0.05)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * torch.log1p(self.b.clamp(min=1e-9) * x) + self.c


class Exp(TemporalFunction):
    """f(x) = a exp(-exp(b) x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = _uniform(-0.2, 0.2), _uniform(-2.0, 0.0)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * torch.exp(-self.b.exp() * x)


class Sin(TemporalFunction):
    """f(x) = c sin(a x + b) + d."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _uniform(-0.02, 0.02), _uniform(-math.pi, math.pi), _uniform(-2.0, 2.0)
        self.d = nn.Parameter(torch.zeros(()))

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.c * torch.sin(self.a * x + self.b) + self.d


class Pow(TemporalFunction):
    """FRAB: f(x) = a (1 + x)^(-b) (equations 11 and 12).

    Written as a exp(-b log(1 + x)), because the logarithm is the same for every layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.decay = _uniform(-0.2, 0.2), _uniform(0.4, 0.8)  # a, b

    def decayed(self, log_gap: Tensor) -> Tensor:
        """(1 + x)^(-b) from log(1 + x), without the factor a. Same shape."""
        return torch.exp(log_gap * -self.decay)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.scale * self.decayed(x.log1p())

    @override
    def forward(self, elapsed: Elapsed) -> Tensor:
        return (self.scale * self.decayed(elapsed.log)).tril()


class Mixed(TemporalFunction):
    """f(x) = the mean of linear, log, exp, sin and pow."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Linear(), Log(), Exp(), Sin(), Pow()])

    @override
    def curve(self, x: Tensor) -> Tensor:
        values = [part.curve(x) for part in self.parts if isinstance(part, TemporalFunction)]
        return torch.stack(values).mean(0)


class Perceptron(TemporalFunction):
    """A network of one number: Linear 1-5, sine, Linear 5-5, SiLU, Linear 5-1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, _NN_WIDTH), nn.Linear(_NN_WIDTH, _NN_WIDTH)
        self.third = nn.Linear(_NN_WIDTH, 1)

    @override
    def curve(self, x: Tensor) -> Tensor:
        hidden = self.second(torch.sin(self.first(x.unsqueeze(-1))))
        return self.third(nn.functional.silu(hidden)).squeeze(-1)

    @override
    def forward(self, elapsed: Elapsed) -> Tensor:
        seconds = elapsed.seconds
        rows, columns = torch.tril_indices(*seconds.shape[1:], device=seconds.device)
        return torch.zeros_like(seconds).index_put_(
            (torch.arange(len(seconds))[:, None], rows, columns), self.curve(seconds[:, rows, columns])
        )


class Bucket(TemporalFunction):
    """HSTU's relative attention bias for time: one weight a bucket of log(x) (equation 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(BUCKETS).normal_(std=0.02))

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.weight[bucket_of(x)]

    @override
    def forward(self, elapsed: Elapsed) -> Tensor:
        return _Lookup.apply(self.weight, elapsed.bucket)  # type: ignore[return-value]


class _Lookup(torch.autograd.Function):
    """weight[bucket] with 0 for the bucket after the last; its gradient by counting, not by sorting."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bucket: Tensor) -> Tensor:
        ctx.save_for_backward(bucket)
        return torch.cat([weight, weight.new_zeros(1)]).index_select(0, bucket.flatten()).view(bucket.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (bucket,) = ctx.saved_tensors
        sums = torch.bincount(bucket.flatten(), gradients[0].flatten(), minlength=BUCKETS + 1)
        return sums[:BUCKETS].to(gradients[0].dtype), None


class Zero(TemporalFunction):
    """f(x) = 0: the channel is there and says nothing."""

    @override
    def curve(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


FUNCTIONS: dict[str, type[TemporalFunction]] = {
    "linear": Linear,
    "log": Log,
    "exp": Exp,
    "sin": Sin,
    "mixed": Mixed,
    "nn": Perceptron,
    "zero": Zero,
    "bucket": Bucket,
    "pow": Pow,
}
"""By the names of Table 6."""
