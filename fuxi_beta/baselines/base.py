"""What the baselines share: lists from a score for every song.

scipy is imported by the functions that need it: the models and their inference do without.

Shapes: `B` listeners, `U` listeners of the shards, `V` songs and the padding row, `K` list length.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fuxi_beta.config import Mode, TrainConfig
from fuxi_beta.data.batches import Batch, is_play, without_newest
from fuxi_beta.ops import top_k_of_scores
from fuxi_beta.recommender import Candidates, Pairs, Queries, Recommender, pairs_of_rows
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from scipy import sparse

_BLOCK = 512  # songs paired with all others at once


class ScoredBaseline(Recommender):
    """A recommender made of `scores`."""

    def __init__(self, *, train: TrainConfig, candidates: Tensor) -> None:
        self.train, self.candidates = train, candidates  # candidates: bool [V]

    @property
    def vocabulary_size(self) -> int:
        """Highest item index it knows."""
        return len(self.candidates) - 1

    @property
    def mode(self) -> Mode:
        """That of the training it is compared with."""
        return self.train.mode

    def scores(self, batch: Batch) -> Tensor:
        """The score of every song for every listener. float32 [B, V]."""
        raise NotImplementedError

    @override
    def queries(self, batch: Batch) -> Queries:
        """Score every song for every listener."""
        return ScoreQueries(self.scores(batch), self.candidates)


class ScoreQueries(Queries):
    """Rankings of scores that are computed already. scores: float32 [B, V]; candidates: bool [V]."""

    def __init__(self, scores: Tensor, candidates: Tensor) -> None:
        self.scores, self.candidates = scores, candidates

    @override
    def rank(
        self, k: int, *, excluded: Pairs | None = None, candidates: Candidates | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k candidates with the highest scores."""
        own = self.candidates if candidates is None else candidates.among(self.candidates)
        scores = self.scores if rows is None else self.scores[rows]
        return top_k_of_scores(scores, candidates=own, k=k, seen=pairs_of_rows(excluded, rows))


class DecayedBaseline(ScoredBaseline):
    """A baseline in which a play counts decay^age. decay: in (0, 1], otherwise ValueError."""

    def __init__(self, *, decay: float, train: TrainConfig, candidates: Tensor) -> None:
        super().__init__(train=train, candidates=candidates)
        if not 0 < decay <= 1:
            raise ValueError(f"decay is {decay}: it must be in (0, 1]")
        self.decay = decay

    def play_weights(self, batch: Batch) -> Tensor:
        """decay^age of each token. float32 [T]."""
        return self.decay ** ages(batch).float()


def sums_of_rows(batch: Batch, weight: Tensor, rows: "sparse.csr_array") -> Tensor:
    """For each listener the sum of the rows of their plays' songs, weighted. float32 [B, V].

    weight: float32 [T], 0 for a play that does not count. rows: float32 [V, V], a row a song.
    """
    from scipy import sparse

    counts = weight > 0
    cells = (batch.listener[counts].numpy(), batch.item_index[counts].numpy())
    plays = sparse.csr_array((weight[counts].numpy(), cells), shape=(batch.num_listeners, len(rows.indptr) - 1))
    sums: Any = plays @ rows
    return torch.from_numpy(sums.toarray())


def ages(batch: Batch) -> Tensor:
    """Plays of the same listener after each token: 0 for the newest. int64 [T]."""
    return batch.offsets[1:][batch.listener] - 1 - torch.arange(len(batch.item_index))


def or_all_songs(candidates: Tensor | None, manifest: Manifest) -> Tensor:
    """The candidates given, by default every song of the manifest. bool [V]."""
    return torch.arange(manifest.vocabulary_size + 1) > 0 if candidates is None else candidates


def plays_before(manifest: Manifest, *, end: int, train: TrainConfig) -> Iterator[Histories]:
    """Each row group's plays before `end` as training sees them: no skips, and not the held-out plays."""
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        if train.protocol == "leave_one_out":
            histories = without_newest(histories, train.held_out, train, manifest.vocabulary_size)
        yield histories.keep((histories.timestamp < end) & is_play(histories, train, manifest.vocabulary_size))


def heard_songs(manifest: Manifest, *, end: int, train: TrainConfig) -> tuple["sparse.csr_array", list[Any]]:
    """Who played what before `end` (Unix seconds) as training sees it: 1 or nothing, int64 [U, V], and the user ids."""
    from scipy import sparse

    width = manifest.vocabulary_size + 1
    keys, users = [np.zeros(0, np.int64)], []
    for plays in plays_before(manifest, end=end, train=train):
        keys.append(np.unique((len(users) + plays.listener) * width + plays.item_index))
        users += plays.user_id.to_pylist()
    key = np.concatenate(keys)  # ascending: row groups come in the order of their rows
    starts = np.searchsorted(key, np.arange(len(users) + 1) * width)
    return sparse.csr_array((np.ones_like(key), key % width, starts), shape=(len(users), width)), users


def shared_listeners(heard: "sparse.csr_array") -> Iterator[tuple[int, Any]]:
    """How many listeners played both of two songs, for blocks of songs: the first of a block, and csr [block, V].

    All pairs of songs at once would be a matrix as large as the result. heard: as from `heard_songs`.
    """
    songs = heard.T.tocsr()
    for start in range(0, songs.shape[0], _BLOCK):
        yield start, songs[start : start + _BLOCK] @ heard
