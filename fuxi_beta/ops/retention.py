"""Retention: linear attention that forgets at a learned rate a head, and its gate (FuXi-Linear, arXiv 2602.23671).

    [U | Q | K | V] = SiLU(projected);  output U * RMSNorm(Y), dropped out
    Y_n = sum over m <= n of exp(-g_h (n - m + 1)) (q_n . k_m) v_m,   for each head h

There is no softmax, no scale and no normaliser. As e^-g to a number of steps factors into one power a step, the past of
a row is one matrix [d, d] a head, S_n = e^-g (S_{n-1} + k_n v_n^T) with Y_n = S_n^T q_n: time and memory are linear in
the length of a history, and nothing is approximated.

| implementation      | where                                    | what                                               |
| ------------------- | ---------------------------------------- | -------------------------------------------------- |
| `cpu/retention.cpp` | float32 on the CPU                       | the recurrence, a head of a listener after another |
| `triton/content.py` | a GPU, heads of up to 128 channels       | chunks of tokens: a square map inside of a chunk,  |
|                     |                                          | the state between them                             |
| `retention_chunked` | any device, any dtype                    | the same                                           |
| `reference`         | any device and dtype, if forced; tests   | the whole map, the definition                      |

Shapes: `T` packed tokens, `D` width in `H` heads of width `d`, `n` padded length of a group of `G` listeners in `c`
chunks of `m` tokens.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, dispatch, reference, triton
from fuxi_beta.ops.reference import gated

CHUNK = 64  # m


class Packed(Protocol):
    """A batch, and its listeners padded in groups where that is needed."""

    @property
    def batch(self) -> Batch:
        """The batch."""
        ...

    @property
    def padding(self) -> Padding:
        """Its groups."""
        ...


def retention(projected: Tensor, decay: Tensor, packed: Packed, mask: Mask | None = None) -> Tensor:
    """U * RMSNorm(Y) with [U | Q | K | V] = SiLU(projected), then dropout. [T, 4 D] -> [T, D].

    Y is retention over each listener's tokens; heads lie side by side in Q, K, V and Y. decay: g of each head, above
    zero. [H], where H divides D. mask: of the dropout, if there is any.
    """
    dim, kernels = projected.shape[1] // 4, dispatch.kernels_for(projected, decay)
    if kernels is cpu or (kernels is triton and dim <= triton.WIDEST_HEAD * len(decay)):
        return kernels.retention(projected, decay, packed.batch, mask)
    gate, query_key_value = F.silu(projected.to(decay.dtype)).split([dim, 3 * dim], dim=1)
    return gated(gate, retained(query_key_value, decay, packed), mask).to(projected.dtype)


def retained(query_key_value: Tensor, decay: Tensor, packed: Packed) -> Tensor:
    """Y alone, of activated [q | k | v]; in linear time for long histories. [T, 3 D] -> [T, D]."""
    wide = query_key_value.shape[1] > 3 * triton.WIDEST_HEAD * len(decay)
    if dispatch.triton_or(None, query_key_value) is triton and not wide:
        return triton.retained(query_key_value, decay, packed.batch)
    retain = retention_chunked if dispatch.in_linear_time(packed.batch) else reference.retention
    return packed.padding.each(query_key_value, lambda padded, _: retain(padded, decay))


def retention_chunked(padded: Tensor, decay: Tensor, chunk: int = CHUNK) -> Tensor:
    """Y of a padded group, chunk by chunk. [n, G, 3 D] -> [n, G, D]."""
    n, listeners, width = padded.shape
    dim, heads = width // 3, len(decay)
    chunk = max(1, min(chunk, n))
    cut = F.pad(padded, (0, 0, 0, 0, 0, -n % chunk))
    by_head = cut.view(-1, chunk, listeners, 3, heads, dim // heads).permute(3, 0, 2, 4, 1, 5)
    query, key, value = by_head.unbind()  # [c, G, H, m, d]
    place = torch.arange(chunk, dtype=padded.dtype, device=padded.device)
    within = reference.retained(decay, chunk)  # [H, m, m]
    since = torch.exp(-decay[:, None] * (place + 2))[..., None]  # [H, m, 1], from the last token of the chunk before
    until = torch.exp(-decay[:, None] * (chunk - 1 - place))[..., None]  # [H, m, 1], to the last token of its own
    across = torch.exp(-decay * chunk)[:, None, None]
    out = (query @ key.mT * within) @ value
    added = (key * until).mT @ value  # [c, G, H, d, d]
    state, states = torch.zeros_like(added[:1].sum(0)), []
    for of_chunk in added:
        states.append(state)
        state = state * across + of_chunk
    if states:
        out = out + (query * since) @ torch.stack(states)
    return out.permute(0, 3, 1, 2, 4).reshape(-1, listeners, dim)[:n]
