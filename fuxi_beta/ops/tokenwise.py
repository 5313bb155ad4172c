"""Operators that work on each token by itself: norm, gate, dropout and random numbers.

Shapes: `T` packed tokens, `C` channels, `H` hidden channels, `K` draws.
"""

import torch
from torch import Tensor

from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import reference
from fuxi_beta.ops.dispatch import kernels_for, triton_or


def rms_norm(x: Tensor, mask: Mask | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm over the channels, without weights; then dropout, if there is a mask. [T, C] -> [T, C].

    dtype: of the result, by default that of x, in which its gradient comes back.
    """
    return (kernels_for(x) or reference).rms_norm(x, mask, dtype)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(left half) * right half of the channels. [T, 2 H] -> [T, H]."""
    return (kernels_for(x) or reference).swiglu(x)


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """`stateless_random.dropout`, the same bits on every implementation. [T, C] -> [T, C]."""
    return (kernels_for(x) or stateless_random).dropout(x, mask)


def combine(*parts: int | Tensor) -> Tensor:
    """`stateless_random.combine`, the same bits on every implementation; one launch in Triton if shapes are equal."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    alike = bool(tensors) and all(tensor.shape == tensors[0].shape for tensor in tensors)
    return (triton_or(stateless_random, *tensors, dtype=torch.int64) if alike else stateless_random).combine(*parts)


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """`stateless_random.integers`, the same bits on every implementation. int64 [T] -> int64 [T, K]."""
    return (kernels_for(keys, dtype=torch.int64) or stateless_random).integers(keys, count, below)
