"""The update of the item table as an operator.

Shapes: `V` rows of the item table, `R` rows to update, `D` width.
"""

from torch import Tensor

from fuxi_beta.ops import reference
from fuxi_beta.ops.dispatch import triton_or


def rowwise_adagrad(
    weight: Tensor,
    accumulator: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    eps: float,
    skip: Tensor | None = None,
) -> None:
    """For each row: `accumulator += mean(g^2)`, then `weight -= lr * g / (sqrt(accumulator) + eps)`, both in place.

    weight: [V, D]; accumulator: [V]; rows: int64 [R], distinct but for row 0, which is padding and never changes;
    gradient: [R, D], g of these rows. skip: a number on the same device, 0-d; nothing changes unless it is 0. Does not
    synchronise with the device. To be called under `torch.no_grad`.
    """
    kernels = triton_or(reference, weight, accumulator, gradient)
    kernels.rowwise_adagrad(weight, accumulator, rows, gradient, lr=lr, eps=eps, skip=skip)
