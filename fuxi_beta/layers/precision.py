"""Where bf16 may stand in for fp32: the matrix products that work token by token, and on a GPU the token mixer's.

Parameters, gradients, optimizer state, the residual stream, sums, the item table and the loss stay float32, and so do
elapsed times and their logarithms: eight bits of mantissa would round the logarithm of three years' seconds to a
multiple of an eighth. On a GPU, whose kernels take bf16, everything between a norm and the residual stream stays bf16,
which halves the traffic. The CPU's kernels are float32, so there the result of each product is converted back.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fuxi_beta import ops


def product(layer: Callable[[Tensor], Tensor], x: Tensor, *, bf16: bool) -> Tensor:
    """layer(x), with its matrix product in bf16 if `bf16`. The result has the dtype of x either way."""
    if not bf16:
        return layer(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return layer(x).to(x.dtype)


def operand_dtype(x: Tensor, *, bf16: bool) -> torch.dtype:
    """The dtype of the norm of x, which the products and the token mixer after it read."""
    return torch.bfloat16 if bf16 and ops.takes_triton(x.device) else x.dtype
