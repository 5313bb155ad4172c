"""Which implementation of an operator runs: chosen by device, dtype and what could be built, or forced by `use`."""

import threading
import warnings
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor

from fuxi_beta.config import Kernels
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import cpu, linear, reference, triton
from fuxi_beta.ops.cpu import build
from fuxi_beta.ops.token_mixer import PreparedTimes

LONG_FROM = 1600  # events from which linear time beats the C++ kernel, by `benchmarks.token_mixer`
LONG_FROM_WITHOUT_KERNELS = 512  # ... and plain torch, by `benchmarks.long_sequences`
CHOICES: tuple[str, ...] = get_args(Kernels)

_choice: str = "auto"
_loading = threading.Lock()
_cpu_failure: str | None = None  # why there are no C++ kernels; empty: there are; None: not tried yet


def use(choice: Kernels) -> None:
    """Force an implementation from now on, in this process. Raises ValueError for an unknown name, and for `cpu` or
    `triton` where they cannot be used."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"there are no {choice!r} kernels: choose one of {', '.join(CHOICES)}")
    if choice == "cpu" and (failure := why_no_cpu_kernels()):
        raise ValueError(f"the C++ kernels cannot be used: {failure}")
    if choice == "triton" and (failure := triton.why_not()):
        raise ValueError(f"the Triton kernels cannot be used: {failure}")
    _choice = choice


def why_no_cpu_kernels() -> str:
    """Why the C++ kernels cannot be used here, empty if they can. Builds them at the first call (half a minute)."""
    global _cpu_failure
    with _loading:
        if _cpu_failure is None:
            try:
                build.load()
                _cpu_failure = ""
            except build.KernelError as error:
                _cpu_failure = str(error)
        return _cpu_failure


def describe(device: torch.device | str = "cpu") -> str:
    """What runs on a device, in words for a log."""
    device = torch.device(device)
    if _choice == "reference":
        return "plain torch (forced)"
    if takes_triton(device):
        return f"{triton.describe()} on {device}"
    if device.type == "cuda":
        return f"plain torch on {device}: {triton.why_not() or f'kernels are {_choice!r}'}"
    if device.type != "cpu":
        return f"plain torch on {device}"
    failure = why_no_cpu_kernels()
    return f"plain torch: {failure}" if failure else f"C++ ({torch.backends.cpu.get_cpu_capability()})"


def takes_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device (for most dtypes): on a GPU, or in the interpreter if forced."""
    if device.type == "cuda":
        return _choice in {"auto", "triton"} and not triton.why_not()
    return device.type == "cpu" and _choice == "triton" and triton.interpreted()


def kernels_for(*tensors: Tensor, dtype: torch.dtype | None = None) -> Any:
    """The implementation for some tensors: `cpu`, `triton`, or None for plain torch.

    dtype: the one that the operator takes, if it is not an operator on floating-point numbers.
    """
    device = tensors[0].device
    if _choice == "reference" or any(tensor.device != device for tensor in tensors):
        return None
    if takes_triton(device):
        return triton if all(t.dtype == dtype if dtype else t.dtype in triton.DTYPES for t in tensors) else None
    if device.type == "cuda" and _choice == "auto":
        _warn_of_triton()
    if device.type != "cpu" or any(tensor.dtype != (dtype or torch.float32) for tensor in tensors):
        return None
    if _cpu_failure is None and (failure := why_no_cpu_kernels()):
        warnings.warn(f"training and scoring run several times slower without C++ kernels: {failure}", stacklevel=3)
    return None if _cpu_failure else cpu


def triton_or(otherwise: Any, *tensors: Tensor, dtype: torch.dtype | None = None) -> Any:
    """The implementation of an operator without a C++ kernel: `triton` where it can be used, else `otherwise`."""
    return (kernels_for(*tensors, dtype=dtype) if takes_triton(tensors[0].device) else None) or otherwise


@cache
def _warn_of_triton() -> None:
    warnings.warn(f"the GPU runs plain torch, several times slower than kernels: {triton.why_not()}", stacklevel=4)


def prepare_times(batch: Batch, like: Tensor) -> PreparedTimes:
    """The times of a batch for `token_mixer` and `apply_maps` of values with the device and dtype of `like`."""
    kernels = kernels_for(like)
    if kernels is triton:
        return triton.PackedTimes(batch)

    def quadratic() -> PreparedTimes:
        return cpu.PackedTimes(batch) if kernels else reference.PaddedTimes(batch, like.dtype)

    long_from = LONG_FROM if kernels else LONG_FROM_WITHOUT_KERNELS
    if _choice == "auto" and like.dtype == torch.float32 and effective_length(batch) >= long_from:
        return linear.LongHistoryTimes(batch, quadratic)
    return quadratic()


def in_linear_time(batch: Batch) -> bool:
    """Whether plain torch should take the linear-time form of an operator that is exact in it, for this batch."""
    return _choice != "reference" and effective_length(batch) >= LONG_FROM_WITHOUT_KERNELS


def effective_length(batch: Batch) -> float:
    """Twice the mean number of past events that a token looks back at; n where all histories have n events."""
    lengths = batch.lengths.double()
    return float(lengths.square().sum() / lengths.sum().clamp(min=1))
