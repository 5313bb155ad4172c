"""The baselines as a day fits them: evaluate measures them beside the model, recommend lists by one that serves."""

from typing import TYPE_CHECKING

import numpy as np

from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from fuxi_beta.baselines.base import ScoredBaseline
    from fuxi_beta.config import EvaluateConfig, TrainConfig

POPULARITY, MARKOV, ITEM_KNN, EASE = "popularity", "markov", "item-knn", "ease"
LABELS = {ITEM_KNN: "Item-kNN", EASE: "EASE", MARKOV: "Markov", POPULARITY: "Popularity"}
"""Baseline -> what people call it, in the order of pages and tables."""
BASELINES = (POPULARITY, MARKOV, ITEM_KNN, EASE)


def fit_baseline(
    name: str, manifest: Manifest, *, end: int, train: "TrainConfig", config: "EvaluateConfig", candidates: np.ndarray
) -> "ScoredBaseline":
    """Fit one of BASELINES to the plays before `end` (Unix seconds). candidates: bool [vocabulary_size + 1]."""
    import torch

    from fuxi_beta.baselines.ease import fit_ease
    from fuxi_beta.baselines.item_knn import fit_item_knn
    from fuxi_beta.baselines.markov import fit_markov
    from fuxi_beta.baselines.popularity import fit_popularity

    mask = torch.from_numpy(candidates)
    if name == POPULARITY:
        return fit_popularity(manifest, end=end, train=train, config=config, candidates=mask)
    fits = {MARKOV: fit_markov, ITEM_KNN: fit_item_knn, EASE: fit_ease}
    return fits[name](manifest, end=end, train=train, candidates=mask)


def too_large(name: str, manifest: Manifest, config: "EvaluateConfig") -> str:
    """Why a baseline is not fitted to these sequences; "" if it is."""
    if name in {ITEM_KNN, EASE} and manifest.events > config.baseline_events:
        return f"{manifest.events:,} plays, evaluate.baseline_events is {config.baseline_events:,}"
    if name == EASE and manifest.vocabulary_size > config.baseline_songs:
        return f"{manifest.vocabulary_size:,} songs, evaluate.baseline_songs is {config.baseline_songs:,}"
    return ""


def known_songs(manifest: Manifest, *, before: int) -> np.ndarray:
    """Songs with a play before a Unix second. bool [vocabulary_size + 1].

    `first_ds` of the vocabulary does not say this: on the first day of a workspace it is that day for every song.
    """
    known = np.zeros(manifest.vocabulary_size + 1, bool)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        known[histories.item_index[histories.timestamp < before]] = True
        known[histories.heard_items] = True  # of plays older than those kept
    return known
