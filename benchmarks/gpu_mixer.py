"""The token mixer on a GPU, forward and backward: `python -m benchmarks.gpu_mixer [--quick]`.

One layer in bf16: both maps, RMSNorm, the gate U and dropout, all gradients; ours against plain torch and
`torch.compile` of it. Every row has about the same number of tokens. `--registers 90` needs no GPU: it compiles the
kernels for a compute capability and prints the resources that they take of a multiprocessor.

The floor is the least traffic, in rows of D numbers a token, if one number a channel is saved for backward. Forward
reads U and V before SiLU (3), writes the output (2) and saves the output of RMSNorm (2); backward reads the gradient
of the output (2), the saved rows (2) and the projection (3), and writes the gradient of the projection (3). That is 17
rows, 34 D bytes in bf16. Ours takes 21: one kernel writes the gradient of both maps' products (2), the next reads it
(2). Times, tiles and sums of lags are below 1 % of that at n = 211. The floor's time is its bytes over the bandwidth
of a copy. That and the rate of a large product in bf16 are measured first.

Products: n (n + 1) / 2 pairs of events times 2 D operations, twice forward, for both maps, and four times backward.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.lib.batches import batch_of
from benchmarks.lib.gpu import Limits, first_results, interleaved, json_line, limits, nothing_to_measure, show
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import reference, triton
from fuxi_beta.ops.token_mixer import PreparedTimes

DIM = 256
SHAPES = ((512, 211), (105, 1024), (26, 4096))  # listeners and events of each
FLOOR_ROWS = 17
PRODUCTS = 6


class Row(NamedTuple):
    """One shape; times in ms, medians, forward and backward."""

    case: str
    ours: float
    eager: float
    compiled: float  # not a number where torch.compile failed
    floor: float
    bandwidth_share: float  # of a copy's, by the floor's bytes
    matrix_share: float  # of the rate of a large product in bf16


def contestant(
    times: PreparedTimes,
    batch: Batch,
    *,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
    power: tuple[float, ...] = (0.1, 0.6),
):
    """Forward and backward of one layer's mixer, as a function. backend: of torch.compile, empty for none.

    power: a and b, or a, b and c.
    """
    tokens, device = len(batch.timestamp), batch.timestamp.device
    projected = torch.randn(tokens, 3 * dim, device=device, dtype=dtype).requires_grad_()
    by_lag = (torch.randn(times.longest, device=device) * 0.02).to(_parameters(times, dtype)).requires_grad_()
    parameters = [torch.tensor(x, device=device, dtype=by_lag.dtype).requires_grad_() for x in power]
    upstream = torch.randn(tokens, 2 * dim, device=device, dtype=dtype)
    mask = Mask(torch.arange(tokens, device=device), 0.2)
    mix = torch.compile(times.token_mixer, backend=backend) if backend else times.token_mixer

    def call() -> None:
        out = mix(projected, by_lag, tuple(parameters), mask)
        torch.autograd.grad(out, [projected, by_lag, *parameters], upstream)

    return call


def _parameters(times: PreparedTimes, dtype: torch.dtype) -> torch.dtype:
    """Plain torch multiplies numbers of one type only; the kernels take parameters as they are trained."""
    return dtype if isinstance(times, reference.PaddedTimes) else torch.float32


def measured(
    listeners: int,
    events: int,
    *,
    rounds: int,
    limits: Limits,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    backend: str = "inductor",
) -> Row:
    """One shape's row."""
    batch = batch_of(listeners, events).to(device)
    ours, plain = triton.PackedTimes(batch), reference.PaddedTimes(batch, dtype)
    contestants = {
        "ours": contestant(ours, batch, dim=dim, dtype=dtype),
        "eager": contestant(plain, batch, dim=dim, dtype=dtype),
        "compiled": contestant(plain, batch, dim=dim, dtype=dtype, backend=backend),
    }
    able = {name: contestants[name] for name in first_results(contestants, needed="ours")}
    times = interleaved(able, rounds=rounds, device=device)
    medians = {name: statistics.median(times[name]) if name in times else float("nan") for name in contestants}
    tokens = listeners * events
    floor = FLOOR_ROWS * dtype.itemsize * dim * tokens / limits.bandwidth * 1e3
    operations = PRODUCTS * listeners * events * (events + 1) * dim
    return Row(
        case=f"{listeners} x {events}, D {dim}",
        ours=medians["ours"],
        eager=medians["eager"],
        compiled=medians["compiled"],
        floor=floor,
        bandwidth_share=floor / medians["ours"],
        matrix_share=operations / medians["ours"] * 1e3 / limits.matrix_rate,
    )


def cases(quick: bool) -> dict[str, Callable[[], None]]:
    """The calls whose kernels are compiled without a GPU."""
    batch = batch_of(3, 211)
    kinds = {"bf16, D 256": (256, torch.bfloat16), "fp32, D 48": (48, torch.float32)}
    if not quick:
        kinds |= {"bf16, D 64": (64, torch.bfloat16), "bf16, D 512": (512, torch.bfloat16)}
        kinds |= {"fp16, D 256": (256, torch.float16), "fp32, D 256": (256, torch.float32)}
    times = triton.PackedTimes(batch)
    found = {name: contestant(times, batch, dim=dim, dtype=dtype) for name, (dim, dtype) in kinds.items()}
    return found | {"bf16, D 256, exppow": contestant(times, batch, power=(0.1, 0.6, 0.9))}


def print_registers(capability: int, *, quick: bool) -> None:
    """Compile the kernels, with every choice of tiles or the first of each, and print their resources."""
    from benchmarks.lib.registers import Resources, compiled

    rows = compiled(cases(quick), capability, every_choice=not quick)
    show(f"compiled for sm_{capability}", Resources._fields, rows)
    print(json_line("gpu_mixer", f"sm_{capability}", rows=rows))


def loaded_kernels() -> list[tuple[str, int, int, int, int]]:
    """Name, warps, registers, bytes of shared memory and spilled registers of each kernel that this process ran."""
    from triton.runtime.jit import JITFunction

    from fuxi_beta.ops.triton import gate, token_mixer

    both = (*vars(token_mixer).values(), *vars(gate).values())
    kernels = {kernel for kernel in both if isinstance(kernel, JITFunction)}
    compiled = [one for kernel in kernels for one in kernel.device_caches[torch.cuda.current_device()][0].values()]
    loaded = [one for one in compiled if hasattr(one, "n_regs")]  # tiles that did not fit the GPU were never loaded
    return [(one.name, one.metadata.num_warps, one.n_regs, one.metadata.shared, one.n_spills) for one in loaded]


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, the first shape only")
    parser.add_argument("--registers", type=int, metavar="CAPABILITY", help="compile only; 90 for H100 and H200")
    options = parser.parse_args()
    if options.registers:
        return print_registers(options.registers, quick=options.quick)
    if nothing_to_measure("gpu_mixer"):
        return None
    if failure := triton.why_not():
        parser.error(f"the Triton kernels cannot be used: {failure}")
    peak_rates = limits()
    shapes, rounds = (SHAPES[:1], 10) if options.quick else (SHAPES, 50)
    rows = [measured(*shape, rounds=rounds, limits=peak_rates) for shape in shapes]
    machine = f"{torch.cuda.get_device_name()}, {peak_rates}"
    show(f"token mixer, ms; {machine}", Row._fields, rows)
    show("kernels", ("name", "warps", "registers", "shared", "spills"), loaded_kernels())
    print(json_line("gpu_mixer", machine, rows=rows))
    return None


if __name__ == "__main__":
    main()
