"""How kernels are made, and on which device they are launched."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import triton
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

kernel = cast(Any, triton.jit)  # its own type would have a launch pass what the body takes


def on_device(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, run with the device of its first tensor as the current one.

    Triton launches and measures kernels on the current device, which need not be the one that holds the tensors.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(next(argument for argument in args if isinstance(argument, Tensor))):
            return function(*args, **kwargs)

    return guarded
