"""List rules against a walk down the sorted catalogue, and that every way to a list takes the same ones."""

import datetime as dt
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fuxi_beta.config import Mode
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import top_k_of_scores
from fuxi_beta.recommender import Recommender
from jobs.serving import rules
from jobs.serving.rules import HeardSongs, ListRule, apply_rules, served_lists

DAY_ONE = dt.date(2026, 3, 2)
TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()


class ArtistCap(ListRule):
    """At most `most` songs by one artist. artist: int64 [V], of each song."""

    def __init__(self, artist: torch.Tensor, most: int) -> None:
        self.artist, self.most = artist, most

    def admitted(self, ranking: torch.Tensor) -> torch.Tensor:
        artist = self.artist[ranking]
        better = (artist[:, :, None] == artist[:, None, :]).tril(-1).sum(2)  # ranked above, by the same artist
        return (ranking > 0) & (better < self.most)


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
    items, values = apply_rules(Scored(scores), batch, k, [HeardSongs(), ArtistCap(artist, most)])
    for row in range(5):
        heard = set(batch.seen_items[batch.seen_listener == row].tolist())
        expected = by_hand(scores[row].tolist(), heard, artist.tolist(), most, k)
        assert items[row].tolist() == expected
        assert values[row].tolist() == [float(scores[row, song]) if song else -torch.inf for song in expected]


def test_a_ranking_is_widened_only_where_rules_cut_it_short(make_batch: Callable[..., Batch]) -> None:
    batch, scores = make_batch([3, 3], songs=60), torch.arange(122, dtype=torch.float32).reshape(2, 61)
    plain, capped = Scored(scores), Scored(scores)
    apply_rules(plain, batch, 10, [HeardSongs()])
    assert plain.widths == [10]
    apply_rules(capped, batch, 10, [ArtistCap(torch.arange(61) // 20, 4)])
    assert capped.widths == [10, 20, 40, 80]  # the tenth song is the 42nd of the ranking


@pytest.mark.parametrize("mode", ["exclusive", "all"])
def test_without_other_rules_a_served_list_is_the_raw_one(make_batch: Callable[..., Batch], mode: Mode) -> None:
    batch = make_batch([5, 0, 30], songs=40)
    recommender = Scored(torch.rand(3, 41, generator=torch.Generator().manual_seed(1)), mode)
    for served, raw in zip(served_lists(recommender, batch, 30), recommender.recommend(batch, 30), strict=True):
        assert torch.equal(served, raw)


def test_the_rule_of_contributing_holds_after_its_two_edits(make_batch: Callable[..., Batch]) -> None:
    text = TEXT.partition("## Add a list rule")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (edit,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    old, new = (line[1:] for line in edit.splitlines())
    source = Path(str(rules.__file__)).read_text()
    assert source.count(old) == 1
    module = types.ModuleType("edited_rules")
    exec(source.replace("def list_rules", f"{code}\n\ndef list_rules").replace(old, new), vars(module))

    batch = make_batch([25, 0, 40, 1], songs=60)
    month = 30 * 86_400
    scores = torch.rand(4, 61, generator=torch.Generator().manual_seed(2))
    items, _ = module.served_lists(Scored(scores, "all"), batch, 60)
    excluded = 0
    for row in range(4):
        plays = (batch.listener == row).nonzero().squeeze(1).tolist()
        recent = {
            int(batch.item_index[play])
            for play in plays
            if int(batch.next_timestamp[plays[-1]]) - int(batch.timestamp[play]) < month
        }
        assert items[row].tolist() == by_hand(scores[row].tolist(), recent, [0] * 61, 61, 60)
        excluded += len(recent)
    assert 0 < excluded < len(batch.item_index.unique())  # some plays are older
    assert module.served_lists(Scored(scores, "all"), make_batch([0, 0]), 5)[0].shape == (4, 5)


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
