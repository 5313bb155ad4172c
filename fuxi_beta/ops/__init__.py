"""One entry for every operator that has kernels; the implementation is chosen by device, dtype and what could be built.

| implementation | where                             | what                                                      |
| -------------- | --------------------------------- | --------------------------------------------------------- |
| `reference`    | any device, any dtype             | plain torch                                               |
| `cpu`          | float32 on the CPU                | C++, compiled on first use; one warning where that fails  |
| `triton`       | float32, bf16 and fp16 on a GPU   | Triton; one warning where it cannot be used               |
| `linear`       | very long histories, no Triton    | the temporal map as a sum of exponentials, the other by FFT |

`use("reference")` forces an implementation, `use("auto")` is the default. All compute the same functions, so the
choice is no hyperparameter: it changes results by rounding only.

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels, `P` positions with a target, `K` negatives each, `U` unique
songs of the batch, `V` rows of the item table, `R` rows to update.
"""

import warnings
from typing import Any, get_args

import torch
from torch import Tensor

from fuxi_beta.config import Kernels
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, linear, reference, triton
from fuxi_beta.ops.cpu import build
from fuxi_beta.ops.token_mixer import Gaps

LONG_FROM = 1600  # events from which linear time beats the C++ kernel, by `benchmarks.token_mixer`
LONG_FROM_WITHOUT_KERNELS = 512  # ... and plain torch, by `benchmarks.long_sequences`
CHOICES: tuple[str, ...] = get_args(Kernels)

_choice: str = "auto"
_failure: str | None = None  # why there are no C++ kernels; empty: there are; None: not tried yet
_warned_of_triton = False


def use(choice: Kernels) -> None:
    """Force an implementation from now on, in this process. Raises ValueError for an unknown name, and if `cpu` or
    `triton` is asked for and cannot be had."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"there are no {choice!r} kernels: choose one of {', '.join(CHOICES)}")
    if choice == "cpu" and (failure := why_no_cpu_kernels()):
        raise ValueError(f"the C++ kernels cannot be used: {failure}")
    if choice == "triton" and (failure := triton.why_not()):
        raise ValueError(f"the Triton kernels cannot be used: {failure}")
    _choice = choice


def why_no_cpu_kernels() -> str:
    """Why the C++ kernels cannot be had here, empty if they can. Builds them at the first call (half a minute)."""
    global _failure
    if _failure is None:
        try:
            build.load()
            _failure = ""
        except build.KernelError as error:
            _failure = str(error)
    return _failure


def describe(device: torch.device | str = "cpu") -> str:
    """What runs on a device, in words for a log."""
    if _choice == "reference":
        return "plain torch (forced)"
    if takes_triton(torch.device(device)):
        return f"{triton.describe()} on {device}"
    if torch.device(device).type == "cuda":
        return f"plain torch on {device}: {triton.why_not() or f'kernels are {_choice!r}'}"
    if torch.device(device).type != "cpu":
        return f"plain torch on {device}"
    failure = why_no_cpu_kernels()
    return f"plain torch: {failure}" if failure else f"C++ ({torch.backends.cpu.get_cpu_capability()})"


def takes_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device, some dtypes aside: those on a GPU, or if forced in its interpreter."""
    if device.type == "cuda":
        return _choice in {"auto", "triton"} and not triton.why_not()
    return device.type == "cpu" and _choice == "triton" and triton.interpreted()


def _kernels(*tensors: Tensor, dtype: torch.dtype | None = None) -> Any:
    """The implementation for some tensors: `cpu`, `triton`, or None for plain torch. dtype: of the kernels, if not that
    of numbers."""
    device = tensors[0].device
    if _choice == "reference" or any(tensor.device != device for tensor in tensors):
        return None
    if takes_triton(device):
        return triton if all(t.dtype == dtype if dtype else t.dtype in triton.DTYPES for t in tensors) else None
    if device.type == "cuda" and _choice == "auto":
        _warn_of_triton()
    if device.type != "cpu" or any(tensor.dtype != (dtype or torch.float32) for tensor in tensors):
        return None
    if _failure is None and (failure := why_no_cpu_kernels()):
        warnings.warn(f"training and scoring run several times slower without C++ kernels: {failure}", stacklevel=3)
    return None if _failure else cpu


def _triton_or(otherwise: Any, *tensors: Tensor, dtype: torch.dtype | None = None) -> Any:
    """The implementation of an operator that C++ does not have: `triton`, or what there is otherwise."""
    return (_kernels(*tensors, dtype=dtype) if takes_triton(tensors[0].device) else None) or otherwise


def _warn_of_triton() -> None:
    global _warned_of_triton
    if not _warned_of_triton:
        _warned_of_triton = True
        warnings.warn(f"the GPU runs plain torch, several times slower than kernels: {triton.why_not()}", stacklevel=4)


def gaps(batch: Batch, like: Tensor) -> Gaps:
    """Prepare the times of a batch for values of the shape [T, D], device and dtype of `like`."""
    kernels = _kernels(like)
    if kernels is triton:
        return triton.PackedGaps(batch)

    def dense() -> Gaps:
        return cpu.PackedGaps(batch) if kernels else reference.PaddedGaps(batch, like.dtype)

    long_from = LONG_FROM if kernels else LONG_FROM_WITHOUT_KERNELS
    if _choice == "auto" and like.dtype == torch.float32 and looked_back(batch) >= long_from:
        return linear.LinearGaps(batch, dense)
    return dense()


def looked_back(batch: Batch) -> float:
    """Events that a token of the batch has before it, twice the mean: n where all histories have n events."""
    lengths = batch.lengths.double()
    return float(lengths.square().sum() / lengths.sum().clamp(min=1))


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """Sum over positions of -log(exp(s+/tau) / (exp(s+/tau) + sum over unmasked negatives of exp(s-/tau))).

    Section 5.5, equation 17, with sampled negatives. states: [P, D] and table: [U, D], both of unit rows; target:
    int64 [P] and negatives: int64 [P, K], rows of the table; masked: bool [P, K], negatives that do not count.
    """
    return (_kernels(states, table) or reference).sampled_softmax(states, table, target, negatives, masked, temperature)


def rms_norm(x: Tensor, mask: Mask | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """RMSNorm over the channels, without weights; then dropout, if there is a mask. [T, C] -> [T, C].

    dtype: of the result, by default that of x, in which its gradient comes back.
    """
    return (_kernels(x) or reference).rms_norm(x, mask, dtype)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(left half) * right half of the channels. [T, 2 H] -> [T, H]."""
    return (_kernels(x) or reference).swiglu(x)


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """`keyed.dropout`, the same bits on every implementation."""
    return (_kernels(x) or stateless_random).dropout(x, mask)


def combine(*parts: int | Tensor) -> Tensor:
    """`keyed.combine`, the same bits on every implementation; one launch for int64 of one shape in Triton."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    alike = bool(tensors) and all(tensor.shape == tensors[0].shape for tensor in tensors)
    return (_triton_or(stateless_random, *tensors, dtype=torch.int64) if alike else stateless_random).combine(*parts)


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """`keyed.integers`, the same bits on every implementation."""
    return (_kernels(keys, dtype=torch.int64) or stateless_random).integers(keys, count, below)


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
    gradient: [R, D], g of these rows. skip: a number on the same device, 0-d; nothing changes unless it is 0. Waits for
    no device. To be called under `torch.no_grad`.
    """
    kernels = _triton_or(reference, weight, accumulator, gradient)
    kernels.rowwise_adagrad(weight, accumulator, rows, gradient, lr=lr, eps=eps, skip=skip)
