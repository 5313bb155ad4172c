"""The functions of elapsed time that the paper compares with FRAB (section 6.4.2, Table 6), HSTU's buckets among them.

Each maps x = max(t_{i+1} - t_j, 0), in seconds, to the weight of event j at row i; above the diagonal the weight is 0.

Shapes: `n` padded length of a group of `G` listeners.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.layers.frab import FRAB, ExpPow, TemporalFunction, uniform
from fuxi_beta.ops.elapsed import BUCKETS, Elapsed, bucket_of

_NN_WIDTH = 5


class Linear(TemporalFunction):
    """f(x) = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = uniform(-0.01, 0.01), uniform(-0.2, 0.2)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


class Log(TemporalFunction):
    """f(x) = a log(1 + b x) + c, with b > 0 itself as the authors' code has it, where the paper writes exp(b)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = uniform(-0.01, 0.01), uniform(0.5, 1.0), uniform(-0.05, 0.05)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * torch.log1p(self.b.clamp(min=1e-9) * x) + self.c


class Exp(TemporalFunction):
    """f(x) = a exp(-exp(b) x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = uniform(-0.2, 0.2), uniform(-2.0, 0.0)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.a * torch.exp(-self.b.exp() * x)


class Sin(TemporalFunction):
    """f(x) = c sin(a x + b) + d."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = uniform(-0.02, 0.02), uniform(-math.pi, math.pi), uniform(-2.0, 2.0)
        self.d = nn.Parameter(torch.zeros(()))

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.c * torch.sin(self.a * x + self.b) + self.d


class Mixed(TemporalFunction):
    """f(x) = the mean of linear, log, exp, sin and FRAB."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Linear(), Log(), Exp(), Sin(), FRAB()])

    @override
    def curve(self, x: Tensor) -> Tensor:
        values = [part.curve(x) for part in self.parts if isinstance(part, TemporalFunction)]
        return torch.stack(values).mean(0)


class Perceptron(TemporalFunction):
    """A network of x: Linear 1-5, sine, Linear 5-5, SiLU, Linear 5-1."""

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
    """HSTU's relative attention bias of time: one weight a bucket of log(x) (equation 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(BUCKETS).normal_(std=0.02))

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.weight[bucket_of(x)]

    @override
    def forward(self, elapsed: Elapsed) -> Tensor:
        return _BucketWeights.apply(self.weight, elapsed.bucket)  # type: ignore[return-value]


class _BucketWeights(torch.autograd.Function):
    """weight[bucket], 0 for bucket `BUCKETS`; the gradient is a weighted count of buckets, which needs no sort."""

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
    """f(x) = 0: the channel exists but is always zero."""

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
    "pow": FRAB,
    "exppow": ExpPow,
}
"""By the names of Table 6, but for the last, which is later than the paper."""
