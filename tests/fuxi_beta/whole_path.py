"""From plays to lists and metrics with `pipelines` and `fuxi_beta` alone: `python whole_path.py FOLDER [KERNELS]`.

Writes shards, reads them, trains for an epoch, exports, loads the export, makes a list for everybody and measures; on
the GPU where there is one. Prints one JSON object.
"""

import datetime as dt
import json
import sys
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from fuxi_beta import ops
from fuxi_beta.config import EvaluateConfig, Kernels, ModelConfig, TrainConfig
from fuxi_beta.data.batches import inference_batch
from fuxi_beta.evaluation.next_day import evaluate_next_day
from fuxi_beta.training.checkpoint import TrainedModel, load_export, save_export
from fuxi_beta.training.fit import fit
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.histories import Histories
from pipelines.histories.publish import BuildSpec, publish_shards, write_bases
from pipelines.histories.shards import Manifest, read_manifest

DS, DAYS, BUCKETS, LISTENERS, SONGS, K = dt.date(2026, 3, 4), 20, 2, 24, 40, 5
CALENDAR = Calendar("UTC")
MODEL = ModelConfig(dim=16, layers=2, heads=2, ffn_multiply=2, max_history=12, dropout=0.1)
TRAIN = TrainConfig(epochs=1, batch_size=8, negatives=8, min_listeners=1, lanes=2, seed=3, learn_from="first_listens")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plays(bucket: int) -> Histories:
    """Walks through the catalogue: song k, then k + 1 or k + 2. Everybody heard songs 3 and 17 long ago."""
    random = np.random.default_rng(bucket)
    count = LISTENERS // BUCKETS
    lengths = random.integers(4, 20, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(count), lengths)
    songs = random.integers(0, SONGS, count)[owner] + random.integers(1, 3, len(owner)).cumsum()
    times = CALENDAR.day_start(DS) - random.integers(1, DAYS * DAY_SECONDS, len(owner))
    return Histories(
        user_id=pa.array(np.arange(count) * BUCKETS + bucket),
        offsets=offsets,
        item_index=(songs % SONGS + 1).astype(np.int32),
        timestamp=times[np.lexsort((times, owner))],
        play_code=np.full(len(owner), 100, np.uint8),
        heard_offsets=np.arange(count + 1) * 2,
        heard_items=np.tile(np.array([3, 17], np.int32), count),
    )


def write_shards(folder: str) -> Manifest:
    """A file for each bucket, in row groups of a few listeners; the manifest as a reader finds it."""
    spec = BuildSpec(
        folder=folder,
        ds=DS,
        data_end=CALENDAR.day_start(DS),
        vocabulary_size=SONGS,
        buckets=BUCKETS,
        row_group_events=48,
        timezone=CALENDAR.timezone,
    )
    publish_shards(spec, write_bases(spec, ((bucket, plays(bucket)) for bucket in range(BUCKETS))))
    return read_manifest(folder)


def lists(manifest: Manifest, trained: TrainedModel) -> dict[str, list[Any]]:
    """Everybody's list for the request of `DS`."""
    found: dict[str, list[Any]] = {"users": [], "items": [], "scores": []}
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        batch = inference_batch(
            histories,
            request_time=CALENDAR.request_time(DS),
            model=MODEL,
            train=TRAIN,
            calendar=CALENDAR,
            vocabulary_size=SONGS,
        )
        items, scores = trained.recommend(batch, K)
        found["users"] += histories.user_id.to_pylist()
        found["items"] += items.tolist()
        found["scores"] += scores.tolist()
    return found


def main(folder: str, kernels: str = "auto") -> None:
    """The whole path with one implementation of the operators."""
    ops.use(cast(Kernels, kernels))
    manifest = write_shards(f"{folder}/ds={DS}")
    until = CALENDAR.day_start(DS - dt.timedelta(days=1))
    fitted = fit(manifest, model=MODEL, train=TRAIN, data_end=until, device=DEVICE)
    save_export(f"{folder}/export", fitted.model)
    trained = load_export(f"{folder}/export").to(DEVICE)
    config = EvaluateConfig(at=(K,))
    measured = evaluate_next_day(
        manifest, {"it": trained}, ds=DS, calendar=CALENDAR, model=MODEL, train=TRAIN, config=config
    )
    found = {
        "kernels": ops.describe(DEVICE),
        "loss": fitted.epoch_losses[0],
        "listeners": measured.listeners,
        "metrics": measured.metrics["it"]["all"],
        **lists(manifest, trained),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
