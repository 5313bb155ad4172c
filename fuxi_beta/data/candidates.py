"""Which songs a model may list and draw negatives from. Shape: `V` songs of the vocabulary, padding first."""

import numpy as np
import pyarrow.compute as pc

from fuxi_beta.config import TrainConfig
from pipelines import schema
from pipelines.histories.shards import Manifest

_COLUMNS = [schema.ITEM_INDEX, schema.TIMESTAMP, schema.COMPLETION]


def candidate_songs(
    manifest: Manifest,
    *,
    train: TrainConfig,
    data_end: int,
    played: np.ndarray | None = None,
) -> np.ndarray:
    """bool [V + 1]: songs played before `data_end` (Unix seconds) that at least `min_listeners` had heard by then.

    What happened since decides nothing: the plays of the day that a model is measured on are among it. A song nobody
    played before training's end has no trained vector, however popular it became since. Under `leave_one_out` every
    song of the catalogue is a candidate (the protocol ranks all of it). played: bool [V + 1], songs with `play_counts`
    above 0, if they are known already.
    """
    eligible = np.zeros(manifest.vocabulary_size + 1, bool)
    if train.protocol == "leave_one_out":
        eligible[1:] = True
        return eligible
    counts = _listeners(manifest, before=data_end)
    eligible[: len(counts)] = (counts >= train.min_listeners)[: len(eligible)]
    eligible[schema.PADDING_INDEX] = False
    return eligible & (play_counts(manifest, train=train, before=data_end) > 0 if played is None else played)


def _listeners(manifest: Manifest, *, before: int) -> np.ndarray:
    """Distinct listeners of each song among the events before a Unix second. int64 [V + 1]."""
    counts = np.zeros(manifest.vocabulary_size + 1, np.int64)
    for file, group, _ in manifest.row_groups():
        songs = manifest.histories(file, group).before(before).lifetime_songs()
        counts += np.bincount(songs, minlength=len(counts))[: len(counts)]
    return counts


def play_counts(manifest: Manifest, *, train: TrainConfig, before: int) -> np.ndarray:
    """int64 [V + 1]: events before a Unix second that are no skips, of each song, among those the shards keep."""
    counts = np.zeros(manifest.vocabulary_size + 1, np.int64)
    for file, group, _ in manifest.row_groups():
        table = manifest.read(file, group, _COLUMNS)
        items, timestamp, completion = (pc.list_flatten(table[name]).to_numpy() for name in _COLUMNS)
        played = items[(timestamp < before) & (completion >= train.min_completion)]
        counts += np.bincount(played, minlength=len(counts))[: len(counts)]
    return counts
