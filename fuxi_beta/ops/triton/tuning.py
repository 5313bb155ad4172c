"""Autotuning: the tile sizes of a kernel are measured once for each shape on the present card, or fixed.

They are fixed where measuring would be wrong: in the interpreter, whose speed means nothing; under
`torch.use_deterministic_algorithms`, because other tile sizes sum in another order, and a clock would choose; and while
a CUDA graph is captured.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
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
_AS_FAST = 1.02  # of the least time: the first choice within it is taken, so that noise decides less
_chosen: dict[Hashable, object] = {}


@dataclass(frozen=True)
class Chunks:
    """Tile sizes and launch options of a kernel that walks over a history chunk by chunk."""

    tokens: int  # of a chunk
    width: int  # channels of a program
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        """Triton's launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def run(key: Hashable, choices: Sequence[Choice], call: Callable[[Choice], Result]) -> Result:
    """call(choice) with the fastest choice for this key, or where choices are fixed with the first that fits the card.

    key: all that the fastest choice depends on, the device included. call must be repeatable, as a measurement calls it
    many times. Measuring waits for the device and needs 256 MB to clear its cache; without that memory the first choice
    that fits is taken. Raises what Triton raises if no choice fits the card.
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
    """The choices made so far, by key."""
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
        median = triton.testing.do_bench(lambda: call(choice), warmup=5, rep=20, return_mode="median")
    except (*_UNFIT, torch.OutOfMemoryError):
        return math.inf
    return float(median)  # type: ignore[arg-type]


def capability() -> tuple[int, int]:
    """Compute capability of the current device; that of Hopper if there is no device."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


def ceil_div(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)
