"""Lists of 30 from a whole catalogue on a GPU: `python -m benchmarks.gpu_retrieval [--quick]`.

1,000,000 listeners against 234,488 and 476,544 songs of D 256, streamed in batches; every listener has heard 50 songs.
Ours scores, masks heard songs and selects in one kernel, and its lists are proved exact. The baselines compute blocks
of scores in torch and take topk: in float32 with exact ties (`fuxi_beta.ops.top_k.blocked_top_k`), and in bf16, which
is fast and not exact. They take fewer listeners a round; the figures are lists a second.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.lib import gpu
from benchmarks.lib.timing import Row, report
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops.top_k import blocked_top_k

DIM, K, HEARD = 256, 30, 50
LISTENERS, BASELINE_LISTENERS, BATCH, BASELINE_BATCH = 1_000_000, 32_768, 65_536, 4096
BLOCK = 65_536  # songs whose bf16 scores the baseline holds
ALL_LISTENERS = 19_252_028  # of the published data set

Search = Callable[[Tensor, tuple[Tensor, Tensor]], object]


def in_bf16(table: Tensor) -> Search:
    """The bf16 baseline, whose lists are not exact."""
    rounded = table.bfloat16()

    def search(queries: Tensor, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        best, items = [], []
        for start in range(0, len(rounded), BLOCK):
            scores = queries.bfloat16() @ rounded[start : start + BLOCK].t()
            inside = (seen[1] >= start) & (seen[1] < start + BLOCK)
            scores[seen[0][inside], seen[1][inside] - start] = -torch.inf
            block = scores.topk(K, dim=1)
            best.append(block.values)
            items.append(block.indices + start)
        top = torch.cat(best, 1).topk(K, dim=1)
        return torch.cat(items, 1).gather(1, top.indices), top.values

    return search


@dataclass(frozen=True)
class Work:
    """The catalogue, and listeners a round and a batch, of ours and of the baselines."""

    songs: int
    listeners: int
    batch: int = BATCH
    baseline_listeners: int = BASELINE_LISTENERS
    baseline_batch: int = BASELINE_BATCH
    dim: int = DIM
    device: str = "cuda"


def streamed(search: Search, work: Work, listeners: int, batch: int) -> None:
    """Make the lists of a number of listeners. Their vectors and heard songs are generated batch by batch."""
    for start in range(0, listeners, batch):
        count = min(batch, listeners - start)
        queries = l2_normalise(torch.randn(count, work.dim, device=work.device))
        listener = torch.arange(count, device=work.device).repeat_interleave(HEARD)
        search(queries, (listener, torch.randint(work.songs, (count * HEARD,), device=work.device)))


def measure(work: Work, rounds: int, *, limits: gpu.Limits) -> list[Row]:
    """A row against each baseline, for one size of the catalogue."""
    from fuxi_beta.ops.triton import top_k as fused

    torch.manual_seed(0)
    table = l2_normalise(torch.randn(work.songs, work.dim, device=work.device))
    candidates = torch.ones(work.songs, dtype=torch.bool, device=work.device)
    catalogue = fused.prepare(table, candidates)
    searched, unproved = [], []

    def ours(queries: Tensor, seen: tuple[Tensor, Tensor]) -> None:
        searched.append(len(queries))
        unproved.append(fused.search(queries, catalogue, k=K, seen=seen).unproved)

    def exact(queries: Tensor, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return blocked_top_k(queries, table, candidates=candidates, k=K, seen=seen)

    searches: dict[str, Search] = {"ours": ours, "float32, exact": exact, "bf16, not exact": in_bf16(table)}
    counts = dict.fromkeys(searches, (work.baseline_listeners, work.baseline_batch))
    counts["ours"] = (work.listeners, work.batch)
    calls = {name: partial(streamed, searches[name], work, *counts[name]) for name in searches}
    able = {name: calls[name] for name in gpu.first_results(calls, needed="ours")}
    times = gpu.interleaved(able, rounds=rounds, warm_up=1, device=work.device)
    rates = {name: [1e3 * counts[name][0] / ms for ms in found] for name, found in times.items()}
    rate, again = statistics.median(rates["ours"]), 1e6 * sum(unproved) / sum(searched)
    share = 2 * work.songs * work.dim * rate / limits.matrix_rate
    note = f"{ALL_LISTENERS:,} lists: {ALL_LISTENERS / rate:,.0f} s; scored again: {again:.1f} in a million; "
    note += f"{share:.0%} of the matrix units' rate"
    return [
        Row(f"{work.songs:,} songs, against {name}", rates["ours"], rates[name], "lists/s", True, note)
        for name in list(rates)[1:]
    ]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="three rounds, a batch of listeners, the smaller catalogue"
    )
    options = parser.parse_args()
    if gpu.nothing_to_measure("gpu_retrieval"):
        return
    rows, limits = [], gpu.limits()
    for songs in (234_488,) if options.quick else (234_488, 476_544):
        rows += measure(Work(songs, BATCH if options.quick else LISTENERS), 3 if options.quick else 5, limits=limits)
    report("gpu_retrieval", rows, ours="fused", baseline="blocks and topk", about=str(limits))


if __name__ == "__main__":
    main()
