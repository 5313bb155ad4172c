"""The sampled softmax on a GPU, forward and backward: `python -m benchmarks.gpu_loss [--quick]`.

25,600 positions with 128 and 1,024 negatives each, 234,488 songs, D 256, both gradients. Ours is the Triton kernel; the
baselines are plain torch without a [P, K, D] tensor (`fuxi_beta.ops.reference.sampled_softmax`, float32 only), and the
gathered definition under torch.compile, which takes fewer positions where its tensors would not fit.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import gpu
from benchmarks.timing import Row, report
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops import reference

SONGS, DIM, TEMPERATURE = 234_488, 256, 0.05
GATHERED_FLOATS = 2**30  # of the baseline that gathers: 4 GB a tensor in float32

DTYPES = (torch.float32, torch.bfloat16)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def measure(positions: int, negatives: int, dtype: torch.dtype, against: str, baseline: Loss, rounds: int) -> Row:
    """Ours and one baseline on the same inputs."""
    from fuxi_beta.ops.triton import loss as fused

    torch.manual_seed(0)
    states = l2_normalise(torch.randn(positions, DIM, device="cuda")).to(dtype).requires_grad_()
    table = l2_normalise(torch.randn(SONGS, DIM, device="cuda")).to(dtype).requires_grad_()
    target = torch.randint(SONGS, (positions,), device="cuda")
    drawn = torch.randint(SONGS, (positions, negatives), device="cuda")
    masked = drawn == target[:, None]

    def step(loss: Loss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(states, table, target, drawn, masked, TEMPERATURE), [states, table])

    found = gpu.interleaved({"ours": step(fused.sampled_softmax), "baseline": step(baseline)}, rounds=rounds)
    case = f"{positions:,} x {negatives:,}, {str(dtype).removeprefix('torch.')}"
    return Row(case, found["ours"], found["baseline"], note=f"against {against}")


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds with 128 negatives")
    options = parser.parse_args()
    if gpu.nothing_to_measure("gpu_loss"):
        return
    rounds = 3 if options.quick else 15
    compiled = torch.compile(reference.sampled_softmax_gathered, dynamic=False)
    rows = []
    for negatives in (128,) if options.quick else (128, 1024):
        fitting = min(25_600, GATHERED_FLOATS // (negatives * DIM))
        rows.append(measure(25_600, negatives, torch.float32, "plain torch", reference.sampled_softmax, rounds))
        rows += [measure(fitting, negatives, dtype, "torch.compile", compiled, rounds) for dtype in DTYPES]
    report("gpu_loss", rows, ours="Triton", baseline="baseline")


if __name__ == "__main__":
    main()
