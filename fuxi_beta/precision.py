"""Where bf16 may stand in for fp32: the matrix products that work token by token, and nothing else.

Parameters, gradients, optimizer state, norms, the maps of position and elapsed time, the item table and the loss stay
float32: eight bits of mantissa would round the logarithm of three years' seconds to a multiple of an eighth.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def product(layer: Callable[[Tensor], Tensor], x: Tensor, *, bf16: bool) -> Tensor:
    """layer(x), with its matrix product in bf16 if asked for. The result has the dtype of x either way."""
    if not bf16:
        return layer(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return layer(x).to(x.dtype)
