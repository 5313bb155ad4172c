"""The operators as Triton kernels for GPUs; see `fuxi_beta.ops` for what they do, `docs/gpu.md` for how.

Importing this package needs no Triton: the modules with kernels are imported at first use.
"""

import importlib
import importlib.metadata
import os
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from fuxi_beta.ops.triton.content import retained, retention
    from fuxi_beta.ops.triton.damped_waves import periodic, waves
    from fuxi_beta.ops.triton.loss import sampled_softmax
    from fuxi_beta.ops.triton.optimizer import rowwise_adagrad
    from fuxi_beta.ops.triton.token_mixer import PackedTimes
    from fuxi_beta.ops.triton.tokenwise import combine, dropout, integers, rms_norm, swiglu

__all__ = [
    "PackedTimes",
    "combine",
    "dropout",
    "integers",
    "periodic",
    "retained",
    "retention",
    "rms_norm",
    "rowwise_adagrad",
    "sampled_softmax",
    "swiglu",
    "waves",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD = 128
"""Channels of a head of `retention` whose state fits into the registers."""
OLDEST = (8, 0)  # compute capability: Ampere has bf16 and TF32

_MODULES = {
    "content": ("retained", "retention"),
    "damped_waves": ("periodic", "waves"),
    "loss": ("sampled_softmax",),
    "optimizer": ("rowwise_adagrad",),
    "token_mixer": ("PackedTimes",),
    "tokenwise": ("combine", "dropout", "integers", "rms_norm", "swiglu"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors in host memory: correct but slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def why_not() -> str:
    """Why Triton cannot be used on this host, empty if it can."""
    try:
        importlib.import_module(f"{__name__}.token_mixer")
    except (ImportError, OSError) as error:
        return f"Triton does not import ({str(error).partition(chr(10))[0]}): pip install triton"
    if interpreted():
        return ""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    return _why_no_launches()


def _why_no_launches() -> str:
    """Triton compiles a small C module for its launches, which needs a compiler, Python's headers and the driver."""
    from triton.runtime import driver

    try:
        cast(Any, driver.active).get_current_device()
    except Exception as error:  # whatever the failure, plain torch still runs
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"Triton cannot launch kernels ({reason}): it needs gcc or clang, Python's headers and libcuda.so.1"
    return ""


def describe() -> str:
    """Version and device, for a log."""
    version = importlib.metadata.version("triton")
    return f"Triton {version}'s interpreter" if interpreted() else f"Triton {version}"
