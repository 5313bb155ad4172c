"""Which songs a model may list and draw negatives from. Shape: `V` songs of the vocabulary, padding first."""

import numpy as np

from fuxi_beta.config import TrainConfig
from pipelines import schema
from pipelines.histories.shards import Manifest


def candidate_songs(manifest: Manifest, *, train: TrainConfig, data_end: int) -> np.ndarray:
    """The candidates of `candidates_and_plays`."""
    return candidates_and_plays(manifest, train=train, data_end=data_end)[0]


def candidates_and_plays(manifest: Manifest, *, train: TrainConfig, data_end: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and plays of each song, in one pass over the shards. bool [V + 1], int64 [V + 1].

    Candidates are songs played before `data_end` (Unix seconds) that at least `min_listeners` had heard by then. What
    happened since decides nothing: the plays of the day that a model is measured on are among it. A song nobody played
    before training's end has no trained vector, however popular it became since. Under `leave_one_out` every song of
    the catalogue is a candidate (the protocol ranks all of it). Plays are the events before `data_end` that are no
    skips, among those the shards keep.
    """
    songs, ranks_all = manifest.vocabulary_size + 1, train.protocol == "leave_one_out"
    plays, listeners = np.zeros(songs, np.int64), np.zeros(songs, np.int64)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group).before(data_end)
        played = histories.item_index[histories.completion >= train.min_completion]
        plays += np.bincount(played, minlength=songs)[:songs]
        if not ranks_all:
            listeners += np.bincount(histories.lifetime_songs(), minlength=songs)[:songs]
    candidates = np.ones(songs, bool) if ranks_all else (listeners >= train.min_listeners) & (plays > 0)
    candidates[schema.PADDING_INDEX] = False
    return candidates, plays
