"""Both protocols on shards small enough to work by hand."""

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.next_day import NextDayCases, evaluate_next_day
from fuxi_beta.evaluation.protocol import Contexts, raw_lists
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.recommender import Queries, Recommender
from fuxi_beta.training.checkpoint import TrainedModel
from pipelines.calendar import Calendar
from pipelines.errors import InputError

HOUR, DAY = 3600, 86_400
DS = dt.date(2026, 3, 4)
CUT = Calendar().day_start(dt.date(2026, 3, 3))
REQUEST = CUT + 8 * HOUR
MODEL = ModelConfig(dim=4, layers=1, max_history=5)
TRAIN = TrainConfig()
CONFIG = EvaluateConfig(at=(2, 3), light_events=2, new_days=7, batch_size=2)
OLD = CUT - 30 * DAY


class Fixed(Recommender):
    """Lists given by hand, by the newest song of the context."""

    def __init__(self, lists: dict[int, list[int]]) -> None:
        self.lists, self.vocabulary_size, self.batches = lists, 9, []
        self.mode = "exclusive"

    def queries(self, batch):
        self.batches.append(batch)
        return FixedQueries(self.lists, batch)


class FixedQueries(Queries):
    def __init__(self, lists, batch):
        self.lists, self.batch = lists, batch

    def rank(self, k, *, excluded=None, candidates=None, rows=None):
        batch, rows = self.batch, []
        for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
            listed = self.lists.get(int(batch.item_index[end - 1]) if end > start else 0, [])
            rows.append((listed + [0] * k)[:k])
        return torch.tensor(rows), torch.zeros(len(rows), k)


@pytest.fixture
def shards(make_shards):
    """Vocabulary 1..9; songs 8 and 9 appeared on the day itself."""
    return make_shards(
        [
            {
                # heavy: three events. Truth: 4 and 5 (6 at 07:00 is before the request, 1 was heard, 8 is new).
                1: [
                    (1, OLD, 100),
                    (2, OLD + 1, 100),
                    (3, CUT - 1, 100),
                    (6, CUT + 7 * HOUR, 100),
                    (4, REQUEST, 100),
                    (6, REQUEST + 1, 100),
                    (1, REQUEST + 2, 100),
                    (5, REQUEST + 3, 100),
                    (8, REQUEST + 4, 100),
                ],
                # light. Truth: 7, skipped first and played later on the same day.
                2: [(2, OLD, 100), (7, REQUEST, 5), (7, REQUEST + 60, 100)],
                # excluded: plays only what is in heard_before.
                3: [(1, OLD, 100), (5, REQUEST, 100)],
            },
            {
                # new: first event three days ago. Truth: 1.
                4: [(2, CUT - 3 * DAY, 100), (4, CUT - DAY, 100), (1, CUT + DAY - 1, 100)],
                # new, without any history. Truth: 2.
                5: [(2, REQUEST + 9, 100)],
                # excluded: a skip, and a play at D 00:00.
                6: [(4, OLD, 100), (5, REQUEST, 10), (6, CUT + DAY, 100)],
            },
        ],
        ds=DS,
        vocabulary_size=9,
        data_end=CUT + DAY,
        heard_before={3: [5]},
    )


def next_day(shards, recommenders, **values):
    options = {"known_items": 7, "train": TRAIN, "config": CONFIG} | values
    return evaluate_next_day(shards, recommenders, ds=DS, calendar=Calendar(), model=MODEL, **options)


def test_next_day_by_hand(shards):
    recommender = Fixed({3: [4, 1, 5], 2: [1, 3, 7], 4: [3, 5, 6]})
    result = next_day(shards, {"fixed": recommender})
    assert (result.listeners, result.excluded, result.request_time) == (4, 2, REQUEST)
    assert result.slices == {"all": 4, "new": 2, "light": 1, "heavy": 1}
    everybody, heavy, light = (result.metrics["fixed"][part] for part in ("all", "heavy", "light"))
    assert heavy["hr_2"] == 1
    assert heavy["recall_2"] == 0.5
    assert heavy["recall_3"] == 1
    ideal = 1 + 1 / math.log2(3)
    assert heavy["ndcg_3"] == pytest.approx((1 + 0.5) / ideal)
    assert heavy["repeats_2"] == 0.5  # song 1 was heard
    assert (light["hr_2"], light["hr_3"], light["ndcg_3"]) == (0, 1, 0.5)
    assert result.metrics["fixed"]["new"]["hr_3"] == 0
    assert everybody["hr_3"] == 0.5
    assert everybody["ndcg_3"] == pytest.approx((1.5 / ideal + 0.5) / 4)
    assert everybody["coverage_2"] == pytest.approx(4 / 7)  # songs 1, 3, 4, 5 of seven known
    assert everybody["coverage_3"] == pytest.approx(6 / 7)


def test_lists_as_served_are_measured_beside_the_raw_ones(shards):
    recommender = Fixed({3: [4, 1, 5], 2: [1, 3, 7], 4: [3, 5, 6]})

    def without_song_4(recommender, contexts, k):
        items, scores = raw_lists(recommender, contexts, k + 1)
        kept = [[song for song in row if song != 4][:k] for row in items.tolist()]
        return torch.tensor(kept), scores[:, :k]

    plain = next_day(shards, {"fixed": recommender}).metrics["fixed"]
    both = next_day(shards, {"fixed": recommender}, served=without_song_4).metrics["fixed"]
    assert {name: value for name, value in both["all"].items() if not name.startswith("served_")} == plain["all"]
    assert {name.removeprefix("served_") for name in both["all"]} == set(plain["all"])
    assert (both["heavy"]["recall_2"], both["heavy"]["served_recall_2"]) == (0.5, 0.5)  # song 5 has moved up
    assert (both["heavy"]["recall_3"], both["heavy"]["served_recall_3"]) == (1, 0.5)
    assert both["all"]["served_coverage_3"] == pytest.approx(5 / 7)


def test_contexts_end_at_the_cut_and_ask_for_the_request_time(shards):
    recommender = Fixed({})
    next_day(shards, {"fixed": recommender})
    contexts = [batch.item_index.tolist() for batch in recommender.batches]
    assert contexts == [[1, 2, 3, 2], [2, 4]]
    last = [batch.next_timestamp[batch.offsets[1:][batch.lengths > 0] - 1] for batch in recommender.batches]
    assert all((times == REQUEST).all() for times in last)


def test_mode_all_counts_heard_songs_as_truth(shards):
    result = next_day(shards, {"fixed": Fixed({3: [1, 6, 2]})}, train=replace(TRAIN, mode="all"))
    assert (result.listeners, result.excluded) == (5, 1)  # listener 3 plays song 5 again
    heavy = result.metrics["fixed"]["heavy"]
    assert heavy["recall_2"] == 0.5  # truth 1, 4, 5, 6
    assert heavy["repeats_3"] == pytest.approx(2 / 3)  # song 6 was not heard before the cut


def test_the_fallback_makes_the_lists_a_recommender_has_not(shards):
    lists = {3: [4, 5], 2: [7, 1], 4: [1, 2]}
    popular = Fixed({0: [2], 3: [9], 2: [9], 4: [9]})
    alone = next_day(shards, {"fixed": Fixed(lists)})
    helped = next_day(shards, {"fixed": Fixed(lists)}, fallback=popular)
    assert alone.metrics["fixed"]["all"]["hr_2"] == 0.75
    assert helped.metrics["fixed"]["all"]["hr_2"] == 1


def test_known_items_may_be_a_mask(shards):
    mask = np.ones(10, bool)
    mask[5] = mask[8] = mask[9] = False
    result = next_day(shards, {"fixed": Fixed({3: [4, 5]})}, known_items=mask)
    assert result.metrics["fixed"]["heavy"]["recall_2"] == 1  # song 5 is no truth now


def test_a_sample_above_max_listeners_is_fixed_and_about_that_size(make_shards):
    users = {user: [(1, OLD, 100), (2, REQUEST, 100)] for user in range(400)}
    manifest = make_shards([users], ds=DS, vocabulary_size=9, data_end=CUT + DAY)
    config = replace(CONFIG, max_listeners=100)
    first, second = (Fixed({1: [2]}) for _ in range(2))
    result = next_day(manifest, {"fixed": first}, config=config)
    next_day(manifest, {"fixed": second}, config=config)
    assert 70 < result.listeners < 130
    assert [len(batch.offsets) for batch in first.batches] == [len(batch.offsets) for batch in second.batches]


def test_several_recommenders_on_the_same_listeners_and_progress(shards):
    popularity = fit_popularity(shards, end=CUT, train=TRAIN, config=CONFIG)
    seen = []
    result = next_day(
        shards,
        {"fixed": Fixed({}), "popularity": popularity},
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert set(result.metrics) == {"fixed", "popularity"}
    assert set(result.metrics["popularity"]["all"]) == {
        "mrr",
        *(f"{metric}_{k}" for metric in ("hr", "recall", "ndcg", "coverage", "repeats") for k in (2, 3)),
    }
    assert result.metrics["popularity"]["all"]["repeats_3"] == 0
    assert seen == [(3, 6), (6, 6)]


def test_sequences_that_end_too_early_are_refused(make_shards):
    manifest = make_shards([{1: []}], ds=DS, vocabulary_size=9, data_end=CUT)
    with pytest.raises(InputError, match="sequences end before 2026-03-04"):
        next_day(manifest, {})


def model_of(vocabulary_size: int, request_hour: int = 8) -> TrainedModel:
    torch.manual_seed(vocabulary_size)
    candidates = torch.ones(vocabulary_size + 1, dtype=torch.bool)
    candidates[0] = False
    return TrainedModel(
        model=FuXiBeta(MODEL),
        model_config=MODEL,
        train_config=TRAIN,
        item_vectors=torch.randn(vocabulary_size + 1, 4),
        candidates=candidates,
        vocabulary_size=vocabulary_size,
        ds=str(DS),
        data_end=CUT,
        request_hour=request_hour,
    )


def test_models_of_different_vocabularies_are_evaluated_together(shards):
    both = next_day(shards, {"challenger": model_of(9), "champion": model_of(3)})
    alone = next_day(shards, {"champion": model_of(3)})
    assert both.metrics["champion"] == alone.metrics["champion"]


def test_a_model_of_another_hour_is_asked_for_the_same_time_and_reads_days_ends_as_it_learned(shards):
    history = next(NextDayCases(shards, DS, Calendar(), TRAIN, np.ones(10, bool), 10).row_groups())[0].before(CUT)
    contexts = Contexts(history, REQUEST, MODEL, TRAIN, Calendar())
    morning, evening = contexts.batch(model_of(9)), contexts.batch(model_of(9, request_hour=20))
    last = morning.offsets[1:][morning.lengths > 0] - 1
    assert set(evening.next_timestamp[last].tolist()) == set(morning.next_timestamp[last].tolist()) == {REQUEST}
    assert set((evening.next_timestamp - morning.next_timestamp).tolist()) == {0, 12 * HOUR}
