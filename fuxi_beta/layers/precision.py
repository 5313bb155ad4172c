"""Where bf16 may stand in for fp32: the matrix products that work token by token, and on a GPU the token mixer's.

Parameters, gradients, optimizer state, the residual stream, sums, the item table and the loss stay float32, and so do
elapsed times and their logarithms: eight bits of mantissa would round the logarithm of three years' seconds to a
multiple of an eighth. On a GPU, whose kernels take bf16, everything between a norm and the residual stream stays bf16,
which halves the traffic. The CPU's kernels are float32, so there the result of each product is converted back.

Further channels keep to the same rules: their two products are bf16; phases, decays, the sums over plays and the rates'
gradients are not. On a CPU a channel's output is within 2^-6 of the largest number of the float32 one and its gradients
within 2^-4; on a GPU, where queries, keys, values and maps are operands of products too, the operator is within
5 * 2^-8 of plain torch on the same bf16 inputs. Tests hold both.
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
