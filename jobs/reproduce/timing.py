"""Seconds an epoch of each system, measured by turns: all systems alternate step by step in one process."""

import statistics
import time
from itertools import chain, count, islice

from fuxi_beta.data.candidates import candidate_songs
from fuxi_beta.training.fit import all_batches, new_trainer
from fuxi_beta.training.trainer import Trainer
from jobs.reproduce.specs import RunSelection, specs
from jobs.reproduce.systems import NOT_TRAINED_BY_STEPS, timing_key
from jobs.runtime.console import progress
from pipelines.histories.shards import Manifest

STEPS, WARM_UP = 12, 2


def time_epochs(manifest: Manifest, selection: RunSelection) -> dict[str, float]:
    """System (or "system-L8" for other depths than 2) -> median step times the steps of an epoch, in seconds.

    Systems take turns on the same batches, so that other load on the machine affects all alike. Sanity baselines,
    BPR-MF, which has no such steps, and Table 6's other functions are left out.
    """
    timed = [s for s in specs(selection) if s.system not in NOT_TRAINED_BY_STEPS and s.temporal == "pow"]
    model, train = selection.preset.model, selection.preset.train
    batches = all_batches(manifest, model=model, train=train, data_end=manifest.data_end)
    trainers: dict[str, Trainer] = {}
    for spec in timed:
        model, train = spec.configs(selection.preset)
        candidates = candidate_songs(manifest, train=train, data_end=manifest.data_end)
        trainer = new_trainer(manifest, candidates, model=model, train=train)
        trainers[timing_key(spec.system, spec.layers)] = trainer
    times: dict[str, list[float]] = {name: [] for name in trainers}
    epochs = chain.from_iterable(map(batches.epoch, count()))
    with progress("timing", STEPS + WARM_UP, unit="rounds") as advance:
        for batch in islice(epochs, STEPS + WARM_UP):
            for name, trainer in trainers.items():
                started = time.perf_counter()
                trainer.step(batch, epoch=0)
                times[name].append(time.perf_counter() - started)
            advance()
    return {
        name: round(statistics.median(seconds[WARM_UP:]) * batches.steps_per_epoch, 3)
        for name, seconds in times.items()
    }
