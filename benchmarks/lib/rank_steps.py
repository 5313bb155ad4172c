"""Steps of several training processes without a cluster: their time together, and apart, with nothing to exchange.

Together they are the ranks of a process group on loopback, with the item table sharded over them. Apart each takes the
same share of the same batches with a table of its own. The difference is what exchange and waiting for each other cost.
"""

import functools
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.rank_processes import in_ranks
from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.candidates import candidates_and_plays
from fuxi_beta.data.reader import TrainingBatches
from fuxi_beta.training.item_table import capacity_rows, item_table
from fuxi_beta.training.trainer import Trainer
from pipelines.histories.shards import read_manifest

_WARM_UP = 3


@dataclass(frozen=True)
class Steps:
    """What is measured. shards: the folder of a manifest."""

    shards: str
    model: ModelConfig
    train: TrainConfig
    ranks: int
    steps: int
    together: bool


@dataclass(frozen=True)
class StepCost:
    """A median step: of the slowest rank, as they wait for each other."""

    wall_s: float
    cpu_s: float  # of one rank's process, mean
    plays: float  # of all ranks
    sent_mb: float  # by one rank over loopback, mean


def measured(wanted: Steps) -> StepCost:
    """Take the steps in new processes."""
    before = _loopback_bytes()
    found = in_ranks(functools.partial(_steps_of, wanted), wanted.ranks, together=wanted.together)
    sent = (_loopback_bytes() - before) / wanted.ranks / (wanted.steps + _WARM_UP)
    wall = statistics.median(max(times) for times in zip(*(one["wall"] for one in found), strict=True))
    cpu = statistics.mean(statistics.median(one["cpu"]) for one in found)
    plays = sum(one["plays"] for one in found) / wanted.steps
    return StepCost(wall, cpu, plays, sent / 1e6 if wanted.together else 0.0)


def _steps_of(wanted: Steps, rank: int) -> dict[str, Any]:
    torch.manual_seed(wanted.train.seed)
    manifest = read_manifest(wanted.shards)
    size, train = manifest.vocabulary_size, wanted.train
    candidates, plays = candidates_and_plays(manifest, train=train, data_end=manifest.data_end)
    batches = TrainingBatches(
        manifest,
        model=wanted.model,
        train=train,
        data_end=manifest.data_end,
        rank=rank,
        world_size=wanted.ranks,
        vocabulary_size=size,
    )
    trainer = Trainer(
        models.build(wanted.model),
        item_table(capacity_rows(size, train.capacity_margin), wanted.model.dim, train=train),
        train=train,
        candidates=torch.from_numpy(candidates.nonzero()[0]),
        plays=torch.from_numpy(plays[candidates]),
    )
    own = list(itertools.islice(batches.epoch(0), _WARM_UP + wanted.steps))
    wall, cpu = [], []
    for batch in own:
        began, used = time.perf_counter(), time.process_time()
        trainer.step(batch, epoch=0)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    counted = sum(batch.item_index.shape[0] for batch in own[_WARM_UP:])
    return {"wall": wall[_WARM_UP:], "cpu": cpu[_WARM_UP:], "plays": counted}


def _loopback_bytes() -> int:
    """Sent over loopback by all processes since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    return 0
