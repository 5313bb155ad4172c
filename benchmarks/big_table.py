"""An item table that no process could hold: `python -m benchmarks.big_table [--songs 4000000 --dim 256 --ranks 4]`.

Every rank may have so much memory of its own (RLIMIT_DATA, `--limit-gb`) and no more: less than the table. The ranks
train some steps, write a checkpoint and end; as many new ones read it, and then half as many with twice the limit. All
must have the weights that were written, bit for bit in each block of rows that both have whole, or it exits with 1.
"""

import argparse
import functools
import json
import resource
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib.batches import batch_of
from benchmarks.lib.rank_processes import in_ranks
from benchmarks.lib.timing import say
from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.training.item_table import capacity_rows, item_table
from fuxi_beta.training.trainer import Trainer
from jobs.runtime import machine

_BLOCK_ROWS = 1 << 12
"""Rows of a check sum, few against those of a shard: blocks across two shards are not compared."""


@dataclass(frozen=True)
class Work:
    """What a group of ranks does. read: from the checkpoint, before the steps."""

    songs: int
    dim: int
    ranks: int
    limit_gb: float
    steps: int
    read: bool
    write: bool


def _rank(work: Work, folder: str, rank: int) -> dict[str, Any]:
    """The body of a process: what it measured, and the check sums of its rows."""
    limit = round(work.limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - began
        return result

    trainer = timed("begin", lambda: _trainer(work))
    if work.read:
        timed("read", lambda: trainer.load(folder))
    for step in range(work.steps):
        batch = _batch(work.songs, seed=100 * step + rank)
        timed("step", lambda batch=batch: trainer.step(batch, epoch=0))
    if work.write:
        timed("write", lambda: trainer.save(folder))
    return {"seconds": seconds, "peak_gb": _peak_gb(), "rows": _check_sums(trainer)}


def _trainer(work: Work) -> Trainer:
    # A reader begins with other values, so that a row that is not read shows.
    train = TrainConfig(negatives=128, item_optimizer="rowwise_adagrad", seed=int(work.read))
    torch.manual_seed(train.seed)
    rows = capacity_rows(work.songs, 0.0)
    return Trainer(
        models.build(ModelConfig(dim=work.dim, layers=1)),
        item_table(rows, work.dim, train=train),
        train=train,
        candidates=torch.arange(1, work.songs + 1),
    )


def _batch(songs: int, *, seed: int) -> Batch:
    batch, generator = batch_of(16, 20), torch.Generator().manual_seed(seed)
    items, targets = (torch.randint(1, songs + 1, batch.item_index.shape, generator=generator) for _ in range(2))
    return replace(batch, item_index=items, target=targets)


def _check_sums(trainer: Trainer) -> dict[str, int]:
    """CRC-32 of blocks of this rank's rows, by the block's first row, for blocks that are whole here."""
    ((shard),) = trainer.table.state()["weight"].local_shards()
    first, rows = shard.metadata.shard_offsets[0], shard.tensor.detach()
    start = -(-first // _BLOCK_ROWS) * _BLOCK_ROWS
    return {
        str(row): zlib.crc32(rows[row - first : row - first + _BLOCK_ROWS].numpy())
        for row in range(start, first + len(rows) - _BLOCK_ROWS + 1, _BLOCK_ROWS)
    }


def _peak_gb() -> float:
    """The largest memory of this process's own, shared libraries and files left out, so far: VmHWM less files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = {name: int(status[name].split()[0]) for name in ("VmHWM", "RssFile", "RssShmem")}
    return (kib["VmHWM"] - kib["RssFile"] - kib["RssShmem"]) * 1024 / 1e9


def same_rows(written: list[dict[str, Any]], read: list[dict[str, Any]]) -> bool:
    """Whether every block that both have whole is the same, and there are some."""
    one, other = ({block: crc for rank in ranks for block, crc in rank["rows"].items()} for ranks in (written, read))
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[block] == other[block] for block in shared)


def print_runs(title: str, works: dict[str, Work], found: dict[str, list[dict[str, Any]]]) -> bool:
    """A line for each group of ranks; returns whether all have the rows of the first."""
    table = Table(title=title, caption=machine.describe())
    for column in ("", "ranks", "limit GB", "peak GB of a rank", "begin s", "a step s", "read s", "write s", "rows"):
        table.add_column(column, justify="right")
    first, same = next(iter(found.values())), True
    for name, work in works.items():
        seconds = [rank["seconds"] for rank in found[name]]
        slowest = [max(one.get(key, 0.0) for one in seconds) for key in ("begin", "step", "read", "write")]
        equal = same_rows(first, found[name])
        same &= equal
        peak = max(rank["peak_gb"] for rank in found[name])
        cells = [str(work.ranks), f"{work.limit_gb:.1f}", f"{peak:.2f}", *(f"{s:.1f}" if s else "" for s in slowest)]
        table.add_row(name, *cells, "same" if equal else "OTHER")
    Console(width=110).print(table)
    return same


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=4_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--limit-gb", type=float, default=3.5, help="memory of each rank's own")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("big-table"), help="of the checkpoint, which is removed")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the songs, within 3 GB")
    options = parser.parse_args()
    if options.quick:
        options.songs, options.limit_gb = options.songs // 20, 3.0
    table_gb = options.songs * options.dim * 4 / 1e9
    say(f"{options.songs:,} songs x {options.dim}: {table_gb:.1f} GB over {options.ranks} ranks")
    sizes = {"songs": options.songs, "dim": options.dim}
    full = {**sizes, "ranks": options.ranks, "limit_gb": options.limit_gb}
    half = {**sizes, "ranks": max(options.ranks // 2, 1), "limit_gb": 2 * options.limit_gb}
    works = {
        "train and write": Work(**full, steps=options.steps, read=False, write=True),
        "read": Work(**full, steps=0, read=True, write=False),
        "read by half as many": Work(**half, steps=0, read=True, write=False),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for name, work in works.items():
            found[name] = in_ranks(functools.partial(_rank, work, str(options.folder)), work.ranks)
            say(f"{name}: {max(rank['peak_gb'] for rank in found[name]):.2f} GB at most")
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    same = print_runs(f"a table of {table_gb:.1f} GB", works, found)
    for ranks in found.values():
        for rank in ranks:
            rank.pop("rows")
    print(json.dumps({"benchmark": "big_table", "machine": machine.describe(), "table_gb": table_gb, "runs": found}))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
