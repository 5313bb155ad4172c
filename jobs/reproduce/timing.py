"""Seconds an epoch of each system, measured fairly: all systems take turns, step by step, in one process."""

import statistics
import time
from collections.abc import Iterator

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.candidates import candidate_songs
from fuxi_beta.data.reader import TrainingBatches
from fuxi_beta.training.fit import all_batches, new_trainer
from fuxi_beta.training.trainer import Trainer
from jobs.reproduce.groups import timing_key
from jobs.reproduce.settings import SANITY, Request, Spec, specs
from jobs.runtime.console import progress
from pipelines.histories.shards import Manifest

STEPS, WARM_UP = 12, 2


def time_epochs(manifest: Manifest, request: Request) -> dict[str, float]:
    """System (or "system-L8" for other depths than 2) -> median step times the steps of an epoch, in seconds.

    Systems take turns on the same batches, so a machine's moods hit all alike. Untrained rows, BPR-MF, which has no
    such steps, and Table 6's other functions are left out.
    """
    left_out = {*SANITY, "bprmf"}
    wanted = [spec for spec in specs(request) if spec.system not in left_out and spec.temporal == "pow"]
    model, train = request.preset.model, request.preset.train
    batches = all_batches(manifest, model=model, train=train, data_end=manifest.data_end)
    trainers = {timing_key(spec.system, spec.layers): _trainer(spec, manifest, request) for spec in wanted}
    found: dict[str, list[float]] = {name: [] for name in trainers}
    with progress("timing", STEPS + WARM_UP, unit="rounds") as advance:
        for batch in _first(batches, STEPS + WARM_UP):
            for name, trainer in trainers.items():
                started = time.perf_counter()
                trainer.step(batch, epoch=0)
                found[name].append(time.perf_counter() - started)
            advance()
    return {
        name: round(statistics.median(seconds[WARM_UP:]) * batches.steps_per_epoch, 3)
        for name, seconds in found.items()
    }


def _first(batches: TrainingBatches, count: int) -> Iterator[Batch]:
    """The first full batches, epoch after epoch where one has too few."""
    made = epoch = 0
    while made < count:
        for batch in batches.epoch(epoch):
            if made == count:
                return
            made += 1
            yield batch
        epoch += 1


def _trainer(spec: Spec, manifest: Manifest, request: Request) -> Trainer:
    model, train = spec.configs(request.preset)
    candidates = candidate_songs(manifest, train=train, data_end=manifest.data_end)
    return new_trainer(manifest, candidates, model=model, train=train)
