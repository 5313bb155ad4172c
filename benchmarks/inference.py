"""The operators of inference on the CPU, one thread: `python -m benchmarks.inference [--quick]`.

A block of FuXi-beta without dropout and gradients as one kernel, against its operators one after the other, whose
matrix products are torch's; at the tokens that a task of the daily list encodes at once. Then the two plays that
contribute most to each of 30 songs, of listeners with as many plays, against plain torch.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.lib.movielens_batch import movielens_like_batch
from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import BlockWeights, Term, contributions, cpu, tokenwise, why_no_cpu_kernels
from fuxi_beta.ops.block import compose
from fuxi_beta.training.checkpoint import CACHED_NUMBERS

SONGS, NAMED = 30, 2
LENGTHS = (30, 100, 200)
SHAPES = ((64, 1), (256, 4))  # D, and H as a multiple of it


def even_batch(dim: int, n: int) -> Batch:
    """Histories of n plays each, as many as are encoded at once."""
    return movielens_like_batch(listeners=max(CACHED_NUMBERS // dim, 1024) // n, longest=n, filled=1.0)


def block(dim: int, multiply: int, batch: Batch) -> dict[str, Callable[[], object]]:
    """One block, as one kernel and put together."""
    hidden, tokens = multiply * dim, len(batch.item_index)
    shapes = (3 * dim, dim), (dim, 2 * dim), (dim,), (2 * hidden, dim), (dim, hidden)
    weights = BlockWeights(*((torch.randn(shape) / shape[-1] ** 0.5).t() for shape in shapes))
    x, times = torch.randn(tokens, dim), cpu.PackedTimes(batch)
    maps = torch.randn(batch.longest) * 0.02, (torch.tensor(0.1), torch.tensor(0.6))
    return {
        "ours": lambda: times.block(x, *maps, weights),
        "baseline": lambda: compose(x, times, *maps, weights, operators=tokenwise),
    }


def strongest(dim: int, batch: Batch) -> dict[str, Callable[[], object]]:
    """The plays of two maps' terms that contribute most."""
    tokens, rows = len(batch.item_index), torch.arange(batch.num_listeners)
    vector = torch.randn(tokens, dim)
    terms = [Term(vector, torch.randn(len(rows), SONGS, dim), torch.randn(tokens)) for _ in range(2)]
    plays = terms, batch.offsets, batch.item_index, rows, NAMED
    return {
        "ours": lambda: cpu.strongest_plays(*plays),
        "baseline": lambda: contributions.strongest_plays(*plays),
    }


@torch.inference_mode()
def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    if failure := why_no_cpu_kernels():
        parser.error(f"there are no C++ kernels to measure: {failure}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for dim, multiply in SHAPES:
        for n in LENGTHS:
            batch = even_batch(dim, n)
            cases = {"block": block(dim, multiply, batch), "strongest plays": strongest(dim, batch)}
            for name, contestants in cases.items():
                times = interleaved(contestants, rounds=3 if options.quick else 15)
                rows.append(Row(f"{name}, D={dim}, {batch.num_listeners} x n={n}", times["ours"], times["baseline"]))
    report("inference", rows, ours="ours", baseline="baseline")


if __name__ == "__main__":
    main()
