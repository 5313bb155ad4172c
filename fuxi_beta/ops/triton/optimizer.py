"""The item table's optimizer in Triton: rows are gathered, updated and scattered in one pass over memory.

Shapes: `V` rows of the table, `D` width, `R` rows to update.
"""

import triton.language as tl
from torch import Tensor

from fuxi_beta.ops.triton.launch import kernel, on_device
from fuxi_beta.ops.triton.tokenwise import rows_of
from fuxi_beta.ops.triton.tuning import ceil_div


@kernel(dynamic=("count",))
def _rowwise_adagrad_kernel(weight, accumulator, rows, gradient, skip, count, dim, lr, eps, ROWS: tl.constexpr,
                            WIDTH: tl.constexpr, SKIPS: tl.constexpr):  # fmt: skip
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + place, mask=place < count, other=0)
    if SKIPS:
        row = tl.where(tl.load(skip) == 0, row, 0)
    changes = row > 0  # row 0 is padding, which several programs may hold
    channel = tl.arange(0, WIDTH)
    inside = changes[:, None] & (channel < dim)[None, :]
    gradient_at = gradient + place.to(tl.int64)[:, None] * dim + channel[None, :]
    weight_at = weight + row[:, None] * dim + channel[None, :]
    values = tl.load(gradient_at, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(weight_at, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(accumulator + row, mask=changes, other=0.0).to(tl.float32) + tl.sum(values * values, 1) / dim
    after = before - values * (lr / (tl.sqrt_rn(total) + eps))[:, None]
    tl.store(accumulator + row, total.to(accumulator.dtype.element_ty), mask=changes)
    tl.store(weight_at, after.to(weight.dtype.element_ty), mask=inside)


@on_device
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
    """See `fuxi_beta.ops.rowwise_adagrad`. Sums and roots in fp32."""
    if not (weight.is_contiguous() and accumulator.is_contiguous()):
        raise ValueError("weight and accumulator are updated where they are: both must be contiguous")
    if gradient.numel():
        at_once, width, warps = rows_of(gradient.shape[1])
        _rowwise_adagrad_kernel[(ceil_div(len(rows), at_once),)](
            weight, accumulator, rows.contiguous(), gradient.contiguous(), weight if skip is None else skip,
            *gradient.shape, lr, eps, ROWS=at_once, WIDTH=width, SKIPS=skip is not None, num_warps=warps,
        )  # fmt: skip
