"""What each kernel takes of a multiprocessor: `python -m benchmarks.gpu_registers [--capability 90] [--quick]`.

Needs no GPU: the kernels' own entry points run on tensors in host memory, and instead of launching Triton compiles for
the capability asked for. So what is compiled is what would be launched, with every choice of tiles.
"""

import argparse
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import gpu
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import loss, optimizer, tokenwise, top_k, tuning

DIM = 256
_CUOBJDUMP = Path(str(nvidia.__file__)).parent / "bin" / "cuobjdump"


class Resources(NamedTuple):
    """Of one compiled kernel."""

    case: str
    kernel: str
    warps: int
    registers: int  # a thread
    shared: int  # bytes a program
    spilled: int  # bytes a thread
    matrix_units: bool


class _NoGPU:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def softmax(dtype: torch.dtype, dim: int = DIM) -> None:
    """Both kernels of the loss."""
    states, table = (torch.ones(2, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    drawn = torch.zeros(2, 128, dtype=torch.int64)
    value = loss.sampled_softmax(states, table, drawn[:, 0].contiguous(), drawn, drawn > 0, 0.05)
    torch.autograd.grad(value, [states, table])


def search(k: int, scoring: torch.dtype) -> None:
    """The four kernels of a search."""
    table, none = torch.zeros(300, DIM), torch.zeros(1, dtype=torch.int64)
    catalogue = top_k.prepare(table, torch.ones(300, dtype=torch.bool), scoring=scoring)
    rounded, _, _ = top_k._round(table, None, scoring)
    top_k._shortlists(rounded, catalogue, top_k._heard((none, none), catalogue, 0, 300, 10), k, None)
    top_k._exact_scores(table, table, torch.zeros(300, 16, dtype=torch.int64))


def norm(dtype: torch.dtype) -> None:
    """RMSNorm of a float32 residual stream for products in another dtype, with dropout."""
    x, keys = torch.ones(2, DIM, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    out = tokenwise.rms_norm(x, Mask(keys, 0.2), dtype)
    torch.autograd.grad(out, x, torch.ones_like(out))


def keys() -> None:
    """Every mixture of parts that training combines."""
    part = torch.zeros(100, dtype=torch.int64)
    for parts in ((1234, 5, part), (part, part), (part, 7), (part, part, 7)):
        tokenwise.combine(*parts)


def adagrad(dim: int) -> None:
    """An update of the item table that asks whether it shall be made."""
    weight, rows = torch.zeros(5, dim), torch.arange(3)
    optimizer.rowwise_adagrad(weight, torch.zeros(5), rows, torch.ones(3, dim), lr=0.1, eps=1e-8, skip=torch.zeros(()))


CASES: dict[str, Callable[[], None]] = {
    "loss, bf16": lambda: softmax(torch.bfloat16),
    "loss, fp32, D 48": lambda: softmax(torch.float32, 48),
    "top 30, fp16": lambda: search(30, torch.float16),
    "norm, fp32 to bf16": lambda: norm(torch.bfloat16),
    "keys": keys,
    "Adagrad, fp32": lambda: adagrad(DIM),
}
MORE_CASES: dict[str, Callable[[], None]] = {
    "loss, fp32": lambda: softmax(torch.float32),
    "top 30, bf16": lambda: search(30, torch.bfloat16),
    "top 10, fp16": lambda: search(10, torch.float16),
    "top 128, fp16": lambda: search(128, torch.float16),
    "norm, fp32": lambda: norm(torch.float32),
    "Adagrad, fp32, D 48": lambda: adagrad(48),
    "Adagrad, fp32, D 5,000": lambda: adagrad(5000),
}


def compiled(cases: dict[str, Callable[[], None]], capability: int, *, every_choice: bool) -> list[Resources]:
    """Compile what the cases would launch. Leaves this process unable to launch anything."""
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
    found: list[Resources] = []
    for case, call in cases.items():
        kernels.clear()
        call()
        found += dict.fromkeys(_resources(case, kernel) for kernel in kernels)
    return found


def _resources(case: str, kernel: Any) -> Resources:
    with NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(n) for n in re.findall(r"\b(?:REG|STACK|LOCAL):(\d+)", usage)[:3])
    matrix_units = "mma" in kernel.asm["ptx"]
    metadata = kernel.metadata
    return Resources(case, metadata.name, metadata.num_warps, registers, metadata.shared, stack + local, matrix_units)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 90 for H100 and H200")
    parser.add_argument("--quick", action="store_true", help="fewer cases, the first choice of tiles of each")
    options = parser.parse_args()
    cases = CASES if options.quick else CASES | MORE_CASES
    rows = compiled(cases, options.capability, every_choice=not options.quick)
    about = f"sm_{options.capability}, Triton {triton.__version__}"
    gpu.show(f"compiled for {about}", Resources._fields, rows)
    print(gpu.json_line("gpu_registers", about, rows=rows))


if __name__ == "__main__":
    main()
