"""The sampled softmax on a GPU, forward and backward: `python -m benchmarks.gpu_loss [--quick]`.

25,600 positions with 128, 1,024 and 4,096 negatives each, 234,488 songs, D 256, both gradients. Ours is the Triton
kernel; the baselines are plain torch without a [P, K, D] tensor (`fuxi_beta.ops.reference.sampled_softmax`, float32
only), and the gathered definition under torch.compile, with fewer positions where its tensors would not fit.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.lib import gpu
from benchmarks.lib.timing import Row, report
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops import reference

SONGS, DIM, TEMPERATURE = 234_488, 256, 0.05
GATHERED_FLOATS = 2**30  # of the baseline that gathers: 4 GB a tensor in float32

DTYPES = (torch.float32, torch.bfloat16)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def measure(
    positions: int,
    negatives: int,
    dtype: torch.dtype,
    against: tuple[str, Loss],
    rounds: int,
    *,
    limits: gpu.Limits,
    songs: int = SONGS,
    dim: int = DIM,
    device: str = "cuda",
) -> list[Row]:
    """Ours and one baseline, a name and a function, on the same inputs; nothing if the baseline fails."""
    from fuxi_beta.ops.triton import loss as fused

    torch.manual_seed(0)
    states = l2_normalise(torch.randn(positions, dim, device=device)).to(dtype).requires_grad_()
    table = l2_normalise(torch.randn(songs, dim, device=device)).to(dtype).requires_grad_()
    target = torch.randint(songs, (positions,), device=device)
    drawn = torch.randint(songs, (positions, negatives), device=device)
    masked = drawn == target[:, None]

    def step(loss: Loss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(states, table, target, drawn, masked, TEMPERATURE), [states, table])

    name, baseline = against
    contestants = {"ours": step(fused.sampled_softmax), name: step(baseline)}
    if name not in gpu.first_results(contestants, needed="ours"):
        return []
    times = gpu.interleaved(contestants, rounds=rounds, device=device)
    case = f"{positions:,} x {negatives:,}, {str(dtype).removeprefix('torch.')}"
    moved = bytes_to_move(positions, negatives, songs, dim * dtype.itemsize)
    share = moved / (statistics.median(times["ours"]) / 1e3) / limits.bandwidth
    return [Row(case, times["ours"], times[name], note=f"against {name}; {share:.0%} of the bandwidth")]


def bytes_to_move(positions: int, negatives: int, songs: int, row: int) -> int:
    """Least traffic of such a loss if the table does not fit the cache. row: bytes of one.

    Rows are gathered once, states and the table read in the backward pass, both gradients written, and the ids read.
    """
    pairs = positions * (1 + negatives)
    return (pairs + 3 * positions + 2 * songs) * row + pairs * 9  # an id and a mask


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds with 128 negatives")
    options = parser.parse_args()
    if gpu.nothing_to_measure("gpu_loss"):
        return
    rounds, limits = 3 if options.quick else 15, gpu.limits()
    plain = ("plain torch", reference.sampled_softmax)
    compiled = ("torch.compile", torch.compile(reference.sampled_softmax_gathered, dynamic=False))
    rows = []
    for negatives in (128,) if options.quick else (128, 1024, 4096):
        fitting = min(25_600, GATHERED_FLOATS // (negatives * DIM))
        rows += measure(25_600, negatives, torch.float32, plain, rounds, limits=limits)
        for dtype in DTYPES:
            rows += measure(fitting, negatives, dtype, compiled, rounds, limits=limits)
    report("gpu_loss", rows, ours="Triton", baseline="baseline", about=str(limits))


if __name__ == "__main__":
    main()
