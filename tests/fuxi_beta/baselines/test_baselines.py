"""Popularity and Markov on shards small enough to count by hand."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxi_beta.baselines.markov import DECAY, fit_markov
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.batches import inference_batch
from pipelines.calendar import Calendar

DAY = 86_400
CUT = Calendar().day_start(dt.date(2026, 3, 2))
TRAIN = TrainConfig(mode="exclusive")


def requests(manifest, train: TrainConfig = TRAIN):
    histories = manifest.histories(manifest.files[0]).before(CUT)
    return inference_batch(
        histories, request_time=CUT, model=ModelConfig(), train=train, calendar=Calendar(), vocabulary_size=6
    )


@pytest.fixture
def shards(make_shards):
    return make_shards(
        [
            {
                1: [(1, CUT - 40 * DAY, 100), (2, CUT - 9, 100), (2, CUT - 8, 100), (3, CUT - 7, 100)],
                2: [(2, CUT - 5, 100), (3, CUT - 4, 100), (2, CUT - 3, 100), (4, CUT - 2, 100)],
            },
            {3: [(2, CUT - 6, 100), (5, CUT - 5, 10), (4, CUT - 4, 100), (6, CUT, 100)], 4: []},
        ],
        vocabulary_size=6,
        data_end=CUT + DAY,
        row_group_events=1,
    )


def test_popularity_counts_distinct_listeners_of_recent_plays_before_the_cut(shards):
    popularity = fit_popularity(shards, end=CUT, train=TRAIN, config=EvaluateConfig())
    # Song 1 is too old, 5 was skipped, 6 is at the cut; listener 1 counts once for song 2.
    assert popularity.listeners.tolist() == [0, 0, 3, 2, 2, 0, 0]


def test_popular_lists_leave_out_heard_songs_and_break_ties_by_index(shards):
    popularity = fit_popularity(shards, end=CUT, train=TRAIN, config=EvaluateConfig())
    items, _ = popularity.recommend(requests(shards), 4)
    assert items.tolist() == [[4, 5, 6, 0], [1, 5, 6, 0]]
    everything = fit_popularity(shards, end=CUT, train=replace(TRAIN, mode="all"), config=EvaluateConfig())
    assert everything.recommend(requests(shards), 3)[0].tolist() == [[2, 3, 4], [2, 3, 4]]


def test_popularity_keeps_to_its_candidates(shards):
    candidates = torch.tensor([False, False, True, False, True, False, False])
    popularity = fit_popularity(shards, end=CUT, train=TRAIN, config=EvaluateConfig(), candidates=candidates)
    assert popularity.recommend(requests(shards), 2)[0].tolist() == [[4, 0], [0, 0]]


def test_the_daily_cap_bounds_one_listener_not_one_song(make_shards):
    """A bot plays 100 songs on one day, song 1 many times first, and 3 on the next."""
    start = CUT - 2 * DAY
    bot = [(1, start + second, 100) for second in range(50)]
    bot += [(song, start + 100 + song, 100) for song in range(1, 101)]
    bot += [(song, start + DAY + song, 100) for song in (50, 60, 70)]
    manifest = make_shards([{1: bot, 2: [(1, start, 100)]}], vocabulary_size=100, data_end=CUT)
    config = EvaluateConfig(popularity_daily_cap=10)
    listeners = fit_popularity(manifest, end=CUT, train=TRAIN, config=config).listeners
    assert listeners[1] == 2
    assert np.flatnonzero(listeners.numpy()).tolist() == [*range(1, 11), 50, 60, 70]


def test_markov_scores_are_decayed_shares_of_what_came_next(shards):
    markov = fit_markov(shards, end=CUT, train=TRAIN)
    # Transitions: 1>2, 2>2, 2>3 (listener 1); 2>3, 3>2, 2>4 (listener 2); 2>4 (listener 3, the skip left out).
    share = {(1, 2): 1, (2, 2): 0.2, (2, 3): 0.4, (2, 4): 0.4, (3, 2): 1}
    latest = [3, 2, 2, 1]  # listener 1, newest first
    expected = torch.zeros(7)
    for age, song in enumerate(latest):
        for (before, after), value in share.items():
            if before == song:
                expected[after] += DECAY**age * value
    found = markov.scores(requests(shards))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=2e-4)
    assert markov.recommend(requests(shards), 1)[0].tolist() == [[4], [1]]


def test_transitions_do_not_cross_listeners(make_shards):
    users = {1: [(1, CUT - 9, 100), (2, CUT - 8, 100)], 2: [(3, CUT - 7, 100), (4, CUT - 6, 100)]}
    markov = fit_markov(make_shards([users], vocabulary_size=6, data_end=CUT), end=CUT, train=TRAIN)
    assert markov.transitions.indices.tolist() == [2, 4]
    assert np.diff(markov.transitions.indptr).tolist() == [0, 1, 0, 1, 0, 0, 0]


def test_markov_looks_at_the_ten_latest_plays_only(make_shards):
    history = [(1, CUT - 100, 100), *((2, CUT - 50 + n, 100) for n in range(10))]
    other = [(1, CUT - 9, 100), (3, CUT - 8, 100), (1, CUT - 7, 100), (3, CUT - 6, 100)]
    manifest = make_shards([{1: history, 2: other}], vocabulary_size=6, data_end=CUT)
    scores = fit_markov(manifest, end=CUT, train=TRAIN).scores(requests(manifest))
    assert scores[0, 3] < 1e-3 < scores[1, 3]


def test_leave_one_out_baselines_never_see_the_held_out_play(make_shards):
    manifest = make_shards([{1: [(1, 10, 100), (2, 20, 100), (3, 30, 100)]}], vocabulary_size=6, data_end=CUT)
    train = TrainConfig(protocol="leave_one_out", mode="all")
    assert fit_popularity(manifest, end=CUT, train=train, config=EvaluateConfig()).listeners[3] == 0
    markov = fit_markov(manifest, end=CUT, train=train)
    assert markov.transitions.indices.tolist() == [2]


def test_baselines_without_any_plays_still_list_songs(make_shards):
    manifest = make_shards([{1: []}], vocabulary_size=6, data_end=CUT)
    for baseline in (
        fit_popularity(manifest, end=CUT, train=TRAIN, config=EvaluateConfig()),
        fit_markov(manifest, end=CUT, train=TRAIN),
    ):
        assert baseline.recommend(requests(manifest), 2)[0].tolist() == [[1, 2]]
