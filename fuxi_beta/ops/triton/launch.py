"""How kernels are made, and on which device they are launched."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import triton
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CHANGING = {"tokens", "places", "lags", "reach", "count", "pairs", "first", "second", "third", "fourth"}
"""Parameters that have another value in every batch, or in every epoch: the parts of a key."""


def kernel(function: Callable[..., Any]) -> Any:
    """A kernel, or a function that kernels call.

    Triton compiles a kernel anew when a number is 1, or is a multiple of 16 and was none before. Numbers that change
    with the batch are kept out of that, so that nothing is left to compile in the midst of a run.
    """
    changing = [name for name in inspect.signature(function).parameters if name in CHANGING]
    return cast(Any, triton.jit)(function, do_not_specialize=changing)


def on_device(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, run with the device of its first tensor as the current one.

    Triton launches and measures kernels on the current device, which need not be the one that holds the tensors.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(next(argument for argument in args if isinstance(argument, Tensor))):
            return function(*args, **kwargs)

    return guarded
