"""Which tile sizes a kernel runs with: measured once a shape on the card at hand, or fixed.

They are fixed where a measurement would do harm: in the interpreter, which has no speed to measure; under
`torch.use_deterministic_algorithms`, because tiles of another size sum in another order and a clock would decide it;
and while a CUDA graph is captured.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import triton.testing
from triton import knobs
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

Choice = TypeVar("Choice")
Result = TypeVar("Result")

INTERPRETED: bool = knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on tensors in host memory (TRITON_INTERPRET=1 before the import)."""

_UNFIT = (OutOfResources, CompileTimeAssertionFailure, PTXASError)
_AS_FAST = 1.02  # of the least time: the first of the choices that are not slower, so that noise decides less
_chosen: dict[Hashable, object] = {}


def run(key: Hashable, choices: Sequence[Choice], call: Callable[[Choice], Result]) -> Result:
    """call(choice) with the choice that is fastest for this key; the first that the card can take where that is fixed.

    key: all that the fastest depends on, the device too. call must do the same whenever it is called, as a measurement
    calls it many times. Measuring waits for the device, and needs 256 MB to clear its cache; where there is no room for
    that the first that fits is taken. Raises what Triton raises if no choice fits the card.
    """
    fixed = INTERPRETED or torch.are_deterministic_algorithms_enabled()
    key = (key, fixed)
    if key in _chosen:
        return call(_chosen[key])  # type: ignore[arg-type]
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    measured = not (fixed or capturing or len(choices) == 1)
    times = [_milliseconds(call, choice) if measured else math.inf for choice in choices]
    if (least := min(times)) < math.inf:
        near = [choice for choice, time in zip(choices, times, strict=True) if time <= _AS_FAST * least]
        _chosen[key] = near[0]
        return call(near[0])
    choice, result = _first_that_fits(choices, call)
    if not capturing:
        _chosen[key] = choice
    return result


def chosen() -> dict[Hashable, object]:
    """What was chosen so far, by key."""
    return dict(_chosen)


def _first_that_fits(choices: Sequence[Choice], call: Callable[[Choice], Result]) -> tuple[Choice, Result]:
    for choice in choices[:-1]:
        try:
            return choice, call(choice)
        except _UNFIT:
            continue
    return choices[-1], call(choices[-1])


def _milliseconds(call: Callable[[Choice], object], choice: Choice) -> float:
    try:
        found = triton.testing.do_bench(lambda: call(choice), warmup=5, rep=20, return_mode="median")
    except (*_UNFIT, torch.OutOfMemoryError):
        return math.inf
    return float(found)  # type: ignore[arg-type]


def capability() -> tuple[int, int]:
    """Compute capability of the current device; Hopper's where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)


def power_of_two(count: int) -> int:
    """The least power of two that is not less than a count."""
    return 1 << max(0, count - 1).bit_length()


def ceil_div(count: int, size: int) -> int:
    """How many parts of a size hold a count."""
    return -(-count // size)
