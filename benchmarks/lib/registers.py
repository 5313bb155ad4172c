"""What a Triton kernel takes of a multiprocessor, by compiling it without a GPU."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fuxi_beta.ops.triton import tuning

_CUOBJDUMP = Path(str(nvidia.__file__)).parent / "bin" / "cuobjdump"


class Resources(NamedTuple):
    """Resources of one compiled kernel."""

    case: str
    kernel: str
    warps: int
    registers: int  # a thread
    shared: int  # bytes a program
    spilled: int  # bytes a thread
    matrix_units: bool


class _NoGPU:
    """The part of a Triton driver that compiling needs."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def compiled(cases: dict[str, Callable[[], None]], capability: int, *, every_choice: bool) -> list[Resources]:
    """Compile the kernels that the cases would launch. This process can launch none afterwards."""
    if tuning.INTERPRETED:
        raise SystemExit("TRITON_INTERPRET is set: unset it, there is nothing to compile")
    driver.set_active(_NoGPU(capability))  # type: ignore[arg-type]
    launch, kernels = JITFunction.run, []

    def choose(_: Any, choices: Any, call: Callable[[Any], Any]) -> Any:
        results = [call(choice) for choice in (choices if every_choice else choices[:1])]
        return results[0]

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernels.append(launch(self, *args, grid=grid, warmup=True, **options))

    tuning.run, JITFunction.run = choose, compile_only  # type: ignore[assignment]
    tuning.capability = lambda: (capability // 10, capability % 10)
    resources: list[Resources] = []
    for case, call in cases.items():
        kernels.clear()
        call()
        resources += dict.fromkeys(_resources(case, kernel) for kernel in kernels)
    return resources


def _resources(case: str, kernel: Any) -> Resources:
    with NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(n) for n in re.findall(r"\b(?:REG|STACK|LOCAL):(\d+)", usage)[:3])
    matrix_units = "mma" in kernel.asm["ptx"]
    metadata = kernel.metadata
    return Resources(case, metadata.name, metadata.num_warps, registers, metadata.shared, stack + local, matrix_units)
