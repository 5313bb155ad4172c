"""List rules against a walk down the sorted catalogue, and that every way to a list takes the same ones.

The rule in the tests is the one that CONTRIBUTING.md adds, an artist cap.
"""

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fuxi_beta.config import Mode
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops.top_k import top_k_of_scores
from fuxi_beta.recommender import Recommender
from jobs.serving import rules
from jobs.serving.rules import HeardSongs, ListRule, make_lists, served_lists

DAY_ONE = dt.date(2026, 3, 2)
TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()


def artist_cap(artist: torch.Tensor, most: int) -> ListRule:
    """The rule of CONTRIBUTING.md, made from the text a reader copies."""
    (code,) = re.findall(r"## Add a list rule.*?```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = vars(rules).copy()
    exec(code, names)
    return names["ArtistCap"](artist, most)


class Scored(Recommender):
    """Given scores [B, V]; counts how often it ranks."""

    def __init__(self, scores: torch.Tensor, mode: Mode = "exclusive") -> None:
        self.scores, self.mode, self.vocabulary_size, self.widths = scores, mode, scores.shape[1] - 1, []

    def rank(self, batch: Batch, k: int, *, excluded: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.widths.append(k)
        candidates = torch.arange(self.scores.shape[1]) > 0
        return top_k_of_scores(self.scores, candidates=candidates, k=k, seen=excluded)


def by_hand(scores: list[float], heard: set[int], artist: list[int], most: int, k: int) -> list[int]:
    """Down the whole catalogue, best first and ties by lower index; 0 where nothing is left."""
    kept: list[int] = []
    for song in sorted(range(1, len(scores)), key=lambda song: (-scores[song], song)):
        if song not in heard and sum(artist[other] == artist[song] for other in kept) < most and len(kept) < k:
            kept.append(song)
    return kept + [0] * (k - len(kept))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("k", "most", "artists"), [(5, 1, 30), (8, 2, 3), (30, 2, 4), (1, 1, 1), (12, 40, 5)])
def test_lists_are_what_a_walk_down_the_sorted_catalogue_gives(
    make_batch: Callable[..., Batch], seed: int, k: int, most: int, artists: int
) -> None:
    random = np.random.default_rng(seed)
    batch = make_batch([4, 0, 17, 40, 1], songs=60, seed=seed)
    scores = torch.from_numpy(random.integers(0, 12, (5, 61)).astype(np.float32))  # many ties
    artist = torch.from_numpy(random.integers(0, artists, 61))
    items, values = make_lists(Scored(scores), batch, k, [HeardSongs(), artist_cap(artist, most)])
    for row in range(5):
        heard = set(batch.seen_items[batch.seen_listener == row].tolist())
        expected = by_hand(scores[row].tolist(), heard, artist.tolist(), most, k)
        assert items[row].tolist() == expected
        assert values[row].tolist() == [float(scores[row, song]) if song else -torch.inf for song in expected]


def test_a_ranking_is_widened_only_where_rules_cut_it_short(make_batch: Callable[..., Batch]) -> None:
    batch, scores = make_batch([3, 3], songs=60), torch.arange(122, dtype=torch.float32).reshape(2, 61)
    plain, capped = Scored(scores), Scored(scores)
    make_lists(plain, batch, 10, [HeardSongs()])
    assert plain.widths == [10]
    make_lists(capped, batch, 10, [artist_cap(torch.arange(61) // 20, 4)])
    assert capped.widths == [10, 20, 40, 80]  # the tenth song is the 42nd of the ranking


@pytest.mark.parametrize("mode", ["exclusive", "all"])
def test_without_other_rules_a_served_list_is_the_raw_one(make_batch: Callable[..., Batch], mode: Mode) -> None:
    batch = make_batch([5, 0, 30], songs=40)
    recommender = Scored(torch.rand(3, 41, generator=torch.Generator().manual_seed(1)), mode)
    for served, raw in zip(served_lists(recommender, batch, 30), recommender.recommend(batch, 30), strict=True):
        assert torch.equal(served, raw)


class OnlyFirstSongs(ListRule):
    """Admits songs 1 to 9."""

    def admitted(self, ranking: torch.Tensor) -> torch.Tensor:
        return (ranking > 0) & (ranking < 10)


def test_serving_evaluation_and_the_pyfunc_take_the_same_rules(
    deployment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from jobs.registry import versions
    from jobs.serving.make_lists import default_part, make_part
    from jobs.stages import evaluate, recommend

    made = deployment(listeners=60)
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    made.choose(DAY_ONE, version)
    plain = rules.list_rules
    monkeypatch.setattr(rules, "list_rules", lambda mode: [*plain(mode), OnlyFirstSongs()])
    first_ids = {made.item_id(index) for index in range(1, 10)}

    day = made.day(DAY_ONE)
    job = recommend.list_job(day)
    for part in [default_part(job), *(make_part(job, file) for file in job.manifest.files)]:
        lists = pq.read_table(f"{job.table_uri}/{part.path}")["items"].to_pylist()
        assert lists
        assert all({song["item_id"] for song in listed} <= first_ids for listed in lists)

    metrics = evaluate.run(day)["metrics"]
    known = int(evaluate.known_songs(job.manifest, before=job.cut - 86_400).sum())
    assert all(0 < values["all"]["coverage_30"] <= 9 / known for values in metrics.values())

    model = mlflow.pyfunc.load_model(versions.model_uri(day, version))
    (listed,) = model.predict(model.input_example)["items"]
    assert 0 < len(listed) < 10
    assert set(listed) <= first_ids
