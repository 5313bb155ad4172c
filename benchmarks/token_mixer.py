"""The token mixer, forward and backward: `python -m benchmarks.token_mixer [--quick]`.

Both maps, RMSNorm, the gate U and dropout, all gradients. First our C++ kernel against plain torch at the lengths of
the ML-1M shape and at full length; then the linear-time path against the C++ kernel: the length from which it is faster
is `fuxi_beta.ops.LONG_FROM`.
"""

import argparse
from functools import partial

import torch

from benchmarks.lib.movielens_batch import movielens_like_batch
from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, linear, reference, why_no_cpu_kernels
from fuxi_beta.ops.token_mixer import PreparedTimes

TOKENS = 16_384


def even_batch(n: int) -> Batch:
    """16,384 tokens as histories of n events each."""
    return movielens_like_batch(listeners=TOKENS // n, longest=n, filled=1.0)


def contestant(times: PreparedTimes, batch: Batch, dim: int):
    """Forward and backward of one layer's mixer, as a function."""
    tokens = len(batch.item_index)
    projected = torch.randn(tokens, 3 * dim, requires_grad=True)
    by_lag = (torch.randn(times.longest) * 0.02).requires_grad_()
    scale, decay = torch.tensor(0.1, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    upstream, mask = torch.randn(tokens, 2 * dim), Mask(torch.arange(tokens), 0.2)

    def call() -> None:
        out = times.token_mixer(projected, by_lag, (scale, decay), mask)
        torch.autograd.grad(out, [projected, by_lag, scale, decay], upstream)

    return call


def main() -> None:
    """Print the tables; the JSON line holds all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and lengths, within a minute")
    options = parser.parse_args()
    if failure := why_no_cpu_kernels():
        parser.error(f"there are no C++ kernels to measure: {failure}")
    rounds = 3 if options.quick else 9
    rows = []
    for dim in (50, 256):
        for name, batch in (("ML-1M lengths", movielens_like_batch()), ("n=200", even_batch(200))):
            ours, plain = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float32)
            times = interleaved(
                {"ours": contestant(ours, batch, dim), "baseline": contestant(plain, batch, dim)}, rounds=rounds
            )
            rows.append(Row(f"{name}, D={dim}", times["ours"], times["baseline"], note="C++ against torch"))
        for n in (512, 1024, 2048) if options.quick else (256, 512, 1024, 2048, 4096):
            batch = even_batch(n)
            kernel = cpu.PackedTimes(batch)
            ours = linear.LongHistoryTimes(batch, partial(cpu.PackedTimes, batch))
            times = interleaved(
                {"ours": contestant(ours, batch, dim), "baseline": contestant(kernel, batch, dim)}, rounds=rounds
            )
            rows.append(Row(f"n={n}, D={dim}", times["ours"], times["baseline"], note="linear time against C++"))
    report("token_mixer", rows, ours="ours", baseline="baseline")


if __name__ == "__main__":
    main()
