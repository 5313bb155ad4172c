"""Lists of 30 from a whole catalogue on the CPU: `python -m benchmarks.lists [--quick]`.

512 and 4,096 listeners with 53 heard songs each against 234,488 and 476,544 songs of D 64 and 256: unit vectors in
random directions, and trained-like ones in 2,000 clusters with near neighbours. Ours is `TopKSearch`, whose lists are
exact; in bf16 where the processor has it, and with the fp32 scan forced. Beside it stand the matrix products alone, in
two layouts, and two ways to exact lists: `torch.topk` over blocks of scores, and faiss' `IndexFlatIP` asked for 30 + 53
songs. The lists of all are compared before anything is timed.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lib.timing import Row, interleaved, report, say
from fuxi_beta import ops
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops.cpu import top_k as fused

K, HEARD, CLUSTERS = 30, 53, 2000
BLOCK = 4096  # songs of a product
SONGS, DIMS, LISTENERS = (234_488, 476_544), (64, 256), (512, 4096)


@dataclass(frozen=True)
class Work:
    """One search."""

    queries: Tensor  # [B, D]
    table: Tensor  # [V, D]
    seen: tuple[Tensor, Tensor]


def make_work(songs: int, dim: int, listeners: int, *, clustered: bool) -> Work:
    """Random vectors and heard songs. clustered: songs and listeners near one of the centres, cosine about 0.8."""
    torch.manual_seed(0)

    def vectors(rows: int) -> Tensor:
        apart = l2_normalise(torch.randn(rows, dim))
        return l2_normalise(centres[torch.randint(CLUSTERS, (rows,))] + 0.75 * apart) if clustered else apart

    centres = l2_normalise(torch.randn(CLUSTERS, dim))
    listener = torch.arange(listeners).repeat_interleave(HEARD)
    return Work(vectors(listeners), vectors(songs), (listener, torch.randint(songs, (listeners * HEARD,))))


def product(work: Work, dtype: torch.dtype, *, songs_first: bool) -> Callable[[], None]:
    """The scores block by block into one place, and nothing else."""
    table, queries = work.table.to(dtype), work.queries.to(dtype)

    def multiply() -> None:
        out = torch.empty(BLOCK * 512, dtype=dtype)
        for some in queries.split(512):
            for songs in table.split(BLOCK):
                left, right = (songs, some) if songs_first else (some, songs)
                torch.mm(left, right.t(), out=out[: len(left) * len(right)].view(len(left), len(right)))

    return multiply


def by_topk(work: Work) -> tuple[Tensor, Tensor]:
    """Exact up to the order of equal scores, 512 listeners at a time."""
    items, scores = [], []
    for first in range(0, len(work.queries), 512):
        some = work.queries[first : first + 512]
        inside = (work.seen[0] >= first) & (work.seen[0] < first + 512)
        listener, song = work.seen[0][inside] - first, work.seen[1][inside]
        best, found = torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.int64)
        for start in range(0, len(work.table), 8192):
            block = some @ work.table[start : start + 8192].t()
            here = (song >= start) & (song < start + 8192)
            block[listener[here], song[here] - start] = -torch.inf
            top = block.topk(K, dim=1)
            merged = torch.cat([best, top.values], 1).topk(K, dim=1)
            found = torch.cat([found, top.indices + start], 1).gather(1, merged.indices)
            best = merged.values
        items.append(found)
        scores.append(best)
    return torch.cat(items), torch.cat(scores)


def by_faiss(work: Work) -> Callable[[], tuple[Tensor, Tensor]]:
    """The 30 + 53 best of an index, less the heard ones."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(work.table.shape[1])
    index.add(work.table.numpy())
    heard = (work.seen[0] * len(work.table) + work.seen[1]).unique()

    def search() -> tuple[Tensor, Tensor]:
        scores, items = map(torch.from_numpy, index.search(work.queries.numpy(), K + HEARD))
        keys = torch.arange(len(items))[:, None] * len(work.table) + items
        best = scores.masked_fill(torch.isin(keys, heard), -torch.inf).topk(K, dim=1)
        return items.gather(1, best.indices), best.values

    return search


def check_equal(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], name: str) -> None:
    """Raises RuntimeError unless the scores are equal to 1e-5 and all but one song in a thousand, neighbours of equal
    score, is in the same lists."""
    apart = (expected[1] - found[1]).abs().max().item()
    same = (expected[0].sort(1).values == found[0].sort(1).values).float().mean().item()
    if apart > 1e-5 or same < 0.999:
        raise RuntimeError(f"{name} has other lists: scores {apart:.1e} apart, {same:.2%} of the songs the same")


def measure(work: Work, case: str, rounds: int) -> list[Row]:
    """Ours against each of the others, and with the fp32 scan forced against the fp32 product."""
    candidates = torch.ones(len(work.table), dtype=torch.bool)
    search = ops.TopKSearch(work.table, candidates)
    single = fused.prepare(work.table, candidates, scan="fp32")

    def ours() -> tuple[Tensor, Tensor]:
        return search.top_k(work.queries, k=K, seen=work.seen)

    def ours_in_fp32() -> tuple[Tensor, Tensor]:
        return fused.search(work.queries, single, k=K, seen=work.seen)[:2]

    lists = {"ours, fp32 scan": ours_in_fp32, "torch.topk in blocks": lambda: by_topk(work), "faiss": by_faiss(work)}
    for name, make in lists.items():
        check_equal(ours(), make(), name)
    products = {
        f"{name} product, {layout} first": product(work, dtype, songs_first=layout == "songs")
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        for layout in ("songs", "listeners")
    }
    times = interleaved({"ours": ours, **lists, **products}, rounds=rounds)
    rows = [Row(f"{case}: {name}", times["ours"], times[name]) for name in (*products, *lists)]
    name = "fp32 product, songs first"
    return [*rows, Row(f"{case}, fp32 scan: {name}", times["ours, fp32 scan"], times[name])]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, 512 listeners, the smaller catalogue")
    parser.add_argument("--songs", type=int, nargs="+", default=SONGS)
    parser.add_argument("--dim", type=int, nargs="+", default=DIMS)
    parser.add_argument("--listeners", type=int, nargs="+", default=LISTENERS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.quick:
        options.songs, options.listeners, options.rounds = SONGS[:1], LISTENERS[:1], 3
    print(f"kernels: {ops.describe()}, scan: {fused.scans()[0]}")
    rows = []
    for sizes in itertools.product(options.songs, options.dim, options.listeners):
        for clustered in (False, True):
            case = f"{sizes[0]:,} x {sizes[1]}, {sizes[2]:,} listeners, {'clusters' if clustered else 'random'}"
            say(case)
            rows += measure(make_work(*sizes, clustered=clustered), case, options.rounds)
    report("lists", rows, ours="ours", baseline="baseline")


if __name__ == "__main__":
    main()
