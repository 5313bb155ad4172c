"""The gate of the token mixer and of its further channels in Triton: U * RMSNorm(Y), then dropout.

One pass over memory forward and one backward; a program holds whole rows. U is SiLU of the first C columns of what was
projected, whatever follows them.

Shapes: `T` packed tokens, `C` channels of U and Y, `P` columns of the projection, `R` rows of a program.
"""

import triton.language as tl
from torch import Tensor

from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton.launch import kernel
from fuxi_beta.ops.triton.tokenwise import EPS, keep_factors, mask_arguments, rows_of, silu, silu_slope
from fuxi_beta.ops.triton.tuning import ceil_div


@kernel(dynamic=("tokens",))
def _gate_kernel(mixed, projected, keys, out, inverse_rms, tokens, channels, columns, zeroed, factor,
                 ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, SAVED: tl.constexpr):  # fmt: skip
    """U * RMSNorm(mixed), then dropout. If SAVED, mixed becomes RMSNorm(mixed). [T, C] -> [T, C]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < channels)[None, :]
    token = row.to(tl.int64)[:, None]
    at = token * channels + channel[None, :]
    values = tl.load(mixed + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / channels + EPS)
    values *= inverse[:, None]
    if SAVED:
        tl.store(inverse_rms + row, inverse, mask=row < tokens)
        tl.store(mixed + at, values.to(mixed.dtype.element_ty), mask=inside)
    values *= silu(tl.load(projected + token * columns + channel[None, :], mask=inside, other=0.0).to(tl.float32))
    if MASKED:
        values *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@kernel(dynamic=("tokens",))
def _ungate_kernel(gradient, projected, normed, inverse_rms, keys, of_projected, of_mixed, tokens, channels, columns,
                   zeroed, factor, ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Gradients of U before its SiLU, and of Y. [T, C] -> the first C columns of [T, P], [T, C]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < channels)[None, :]
    token = row.to(tl.int64)[:, None]
    at, gate_at = token * channels + channel[None, :], token * columns + channel[None, :]
    upstream = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if MASKED:
        upstream *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    gate = tl.load(projected + gate_at, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(normed + at, mask=inside, other=0.0).to(tl.float32)
    of_gate = upstream * values * silu_slope(gate)
    tl.store(of_projected + gate_at, of_gate.to(of_projected.dtype.element_ty), mask=inside)
    of_values = upstream * silu(gate)
    of_values -= values * (tl.sum(of_values * values, 1) / channels)[:, None]
    of_values *= tl.load(inverse_rms + row, mask=row < tokens, other=0.0)[:, None]
    tl.store(of_mixed + at, of_values.to(of_mixed.dtype.element_ty), mask=inside)


def gate(mixed: Tensor, projected: Tensor, mask: Mask | None, out: Tensor, inverse_rms: Tensor) -> None:
    """U * RMSNorm(mixed), dropped out, into out. [T, C], [T, P] -> [T, C].

    inverse_rms: float32 [T] for a backward pass, for which mixed becomes RMSNorm(mixed); [0] if there will be none.
    """
    rows, width, warps = rows_of(mixed.shape[1])
    keys, zeroed, factor = mask_arguments(mask, projected)
    if out.numel():
        _gate_kernel[(ceil_div(len(mixed), rows),)](
            mixed, projected, keys, out, inverse_rms, *mixed.shape, projected.shape[1], zeroed, factor, ROWS=rows,
            WIDTH=width, MASKED=mask is not None, SAVED=len(inverse_rms) > 0, num_warps=warps,
        )  # fmt: skip


def ungate(
    gradient: Tensor, projected: Tensor, normed: Tensor, inverse_rms: Tensor, mask: Mask | None, of_projected: Tensor
) -> Tensor:
    """The gradient of Y; that of U before its SiLU goes into the first C columns of of_projected. [T, C] -> [T, C]."""
    of_mixed = normed.new_empty(normed.shape)
    rows, width, warps = rows_of(normed.shape[1])
    keys, zeroed, factor = mask_arguments(mask, projected)
    if of_mixed.numel():
        _ungate_kernel[(ceil_div(len(normed), rows),)](
            gradient.contiguous(), projected, normed, inverse_rms, keys, of_projected, of_mixed, *normed.shape,
            projected.shape[1], zeroed, factor, ROWS=rows, WIDTH=width, MASKED=mask is not None, num_warps=warps,
        )  # fmt: skip
    return of_mixed
