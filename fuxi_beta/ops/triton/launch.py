"""How kernels are declared, and on which device they are launched."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import triton
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

device_function: Any = triton.jit
"""Declares a function that kernels call."""


def kernel(function: Callable[..., Any] | None = None, *, dynamic: Sequence[str] = ()) -> Any:
    """Declares a kernel. dynamic: its integer parameters that change from batch to batch, or from epoch to epoch.

    Triton compiles a kernel anew when an integer is 1, or is a multiple of 16 and was none before. Dynamic parameters
    are exempt, so that nothing is compiled in the middle of a run.
    """
    declare = cast(Any, triton.jit)(do_not_specialize=list(dynamic))
    return declare if function is None else declare(function)


def on_device(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, run with the device of its first tensor as the current device.

    Triton launches and measures kernels on the current device, which may not be the one that holds the tensors.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(next(argument for argument in args if isinstance(argument, Tensor))):
            return function(*args, **kwargs)

    return guarded
