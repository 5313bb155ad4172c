"""One entry for every operator that has kernels; the implementation is chosen by device, dtype and what could be built.

| implementation | where                     | what                                                          |
| -------------- | ------------------------- | ------------------------------------------------------------- |
| `reference`    | any device, any dtype     | plain torch                                                   |
| `cpu`          | float32 on the CPU        | C++, compiled on first use; one warning where that fails      |
| `linear`       | very long histories       | the temporal map as a sum of exponentials, the other by FFT   |

`use("reference")` forces an implementation, `use("auto")` is the default. All compute the same functions, so the
choice is no hyperparameter: it changes results by rounding only.

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels, `P` positions with a target, `K` negatives each, `U` unique
songs of the batch.
"""

import warnings
from typing import Protocol, get_args

import torch
from torch import Tensor

from fuxi_beta import keyed
from fuxi_beta.batches import Batch
from fuxi_beta.config import Kernels
from fuxi_beta.keyed import Mask
from fuxi_beta.ops import cpu, reference
from fuxi_beta.ops.cpu import build

CHOICES: tuple[str, ...] = get_args(Kernels)

_choice: str = "auto"
_failure: str | None = None  # why there are no C++ kernels; empty: there are; None: not tried yet


def use(choice: Kernels) -> None:
    """Force an implementation from now on, in this process. Raises ValueError for an unknown name, and if `cpu` is
    asked for and cannot be had."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"there are no {choice!r} kernels: choose one of {', '.join(CHOICES)}")
    if choice == "cpu" and (failure := why_no_cpu_kernels()):
        raise ValueError(f"the C++ kernels cannot be used: {failure}")
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
    if torch.device(device).type != "cpu":
        return f"plain torch on {device}"
    if _choice == "reference":
        return "plain torch (forced)"
    failure = why_no_cpu_kernels()
    return f"plain torch: {failure}" if failure else f"C++ ({torch.backends.cpu.get_cpu_capability()})"


def _has_kernels(*tensors: Tensor) -> bool:
    if _choice == "reference" or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        return False
    if _failure is None and (failure := why_no_cpu_kernels()):
        warnings.warn(f"training and scoring run several times slower without C++ kernels: {failure}", stacklevel=3)
    return not _failure


class Gaps(Protocol):
    """The times of a batch, prepared once and shared by all layers."""

    longest: int  # tokens of the longest history

    def mix(
        self, projected: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None, mask: Mask | None
    ) -> Tensor:
        """U * RMSNorm([B V | B^t V]) with [U | V] = SiLU(projected), then dropout. [T, 3 D] -> [T, C].

        Equations 13 and 14; both maps are causal within each listener's tokens. B[i, j] = by_lag[i - j], of which
        there are `longest` (equation 8); B^t[i, j] = scale (1 + max(t_{i+1} - t_j, 0))^(-decay) (equations 11, 12),
        zero where these are None.
        """
        ...


def gaps(batch: Batch, like: Tensor) -> Gaps:
    """Prepare the times of a batch for values of the device and dtype of `like`."""
    return cpu.PackedGaps(batch) if _has_kernels(like) else reference.PaddedGaps(batch, like.dtype)


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """Sum over positions of -log(exp(s+/tau) / (exp(s+/tau) + sum over unmasked negatives of exp(s-/tau))).

    Section 5.5, equation 17, with sampled negatives. states: [P, D] and table: [U, D], both of unit rows; target:
    int64 [P] and negatives: int64 [P, K], rows of the table; masked: bool [P, K], negatives that do not count.
    """
    kernels = cpu if _has_kernels(states, table) else reference
    return kernels.sampled_softmax(states, table, target, negatives, masked, temperature)


def rms_norm(x: Tensor, mask: Mask | None = None) -> Tensor:
    """RMSNorm over the channels, without weights; then dropout, if there is a mask. [T, C] -> [T, C]."""
    return (cpu if _has_kernels(x) else reference).rms_norm(x, mask)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(left half) * right half of the channels. [T, 2 H] -> [T, H]."""
    return (cpu if _has_kernels(x) else reference).swiglu(x)


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """`keyed.dropout`, the same bits on every implementation."""
    return (cpu if _has_kernels(x) else keyed).dropout(x, mask)


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """`keyed.integers`, the same bits on every implementation."""
    kernels = _choice != "reference" and keys.device.type == "cpu" and not why_no_cpu_kernels()
    return (cpu if kernels else keyed).integers(keys, count, below)
