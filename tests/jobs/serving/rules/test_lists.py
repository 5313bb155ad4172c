"""Lists under rules against a walk down the sorted catalogue in plain Python."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.serving.rules import ListenerFacts, SongFacts
from jobs.serving.rules.explain import QUOTA, Explanations
from tests.jobs.serving.rules.conftest import NOW, World, most_of, neighbours, random_world

RULES: list[dict[str, Any]] = [
    {},
    {"max_per_artist": 1},
    {"max_per_artist": 0, "one_version": False},
    {"heard_days": 20},
    {"heard_days": 0, "max_known_share": 0.25, "mode": "all"},
    {"heard_days": 10, "mode": "all"},
    {"mode": "all"},
    {"new_releases": 3, "new_release_days": 14},
    {"new_releases": 30, "new_release_min_score": 0.6, "max_per_artist": 3},
    {"segments": {}},
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 12, 60])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_lists_are_what_a_walk_down_the_sorted_catalogue_gives(seed: int, k: int, rules: dict[str, Any]) -> None:
    world = random_world(seed, space_artists=False, **rules)
    made = world.rules(k).lists(world.recommender, world.contexts, k)
    for row in range(len(world.histories)):
        expected = world.expected(row, k)
        assert made.items[row].tolist() == expected
        scores = [float(world.scores[row, song]) if song else -torch.inf for song in expected]
        assert made.scores[row].tolist() == scores
    assert made.propensity.isnan().all()


@pytest.mark.parametrize("seed", range(8))
def test_artists_are_moved_apart_where_that_can_be_helped(seed: int) -> None:
    plain = random_world(seed, space_artists=False, max_per_artist=4)
    apart = replace(plain, config=plain.config.model_copy(update={"space_artists": True}))
    before = plain.rules(10).lists(plain.recommender, plain.contexts, 10)
    after = apart.rules(10).lists(apart.recommender, apart.contexts, 10)
    assert plain.songs.artist is not None
    for row in range(len(plain.histories)):
        assert sorted(after.items[row].tolist()) == sorted(before.items[row].tolist())
        songs = [song for song in after.items[row].tolist() if song]
        assert after.items[row].tolist()[: len(songs)] == songs  # places without a song stay behind
        assert [float(plain.scores[row, song]) for song in songs] == after.scores[row].tolist()[: len(songs)]
        artists = plain.songs.artist[torch.tensor(songs, dtype=torch.int64)].tolist()
        most = most_of(artists)
        assert neighbours(artists) == max(0, most - (len(artists) - most) - 1)


def test_a_ranking_is_widened_only_where_rules_cut_it_short() -> None:
    world = random_world(1, listeners=2, space_artists=False, segments={})
    world.facts = ListenerFacts(np.array(["", ""], object))
    world.songs = SongFacts(61)
    recommender = world.recommender
    world.rules(10).lists(recommender, world.contexts, 10)
    assert recommender.widths == [10]
    world.songs = SongFacts(61, artist=torch.arange(61) // 20 + 1)
    recommender = world.recommender
    world.rules(10).lists(recommender, world.contexts, 10)
    assert recommender.widths[0] == 20
    assert recommender.widths[-1] >= 60  # six songs of three artists are all there are


def test_popular_songs_are_damped_and_the_penalty_is_in_the_score() -> None:
    world = random_world(3, popularity_dampening=5.0, space_artists=False, segments={})
    popularity = world.songs.popularity
    assert popularity is not None
    penalty = 5.0 * popularity.log1p() / popularity.max().log1p()
    made = world.rules(8).lists(world.recommender, world.contexts, 8)
    world.scores = world.scores - penalty
    for row in range(len(world.histories)):
        assert made.items[row].tolist() == world.expected(row, 8)


def explored(seed: int, users: int, *, day: int = 0, **rules: Any) -> tuple[World, Any]:
    world = random_world(seed, listeners=users, explore=2, explore_pool=6, segments={}, space_artists=False, **rules)
    world.facts = ListenerFacts(np.full(users, "", object))
    contexts = replace(world.contexts, request_time=NOW + day)
    return world, world.rules(10).lists(world.recommender, contexts, 10)


def test_explored_songs_come_from_behind_the_list_and_keep_the_rules() -> None:
    world, made = explored(4, 30)
    assert world.songs.artist is not None
    for row in range(30):
        plain = world.expected(row, 8)
        assert made.items[row].tolist()[:8] == plain
        assert made.propensity[row, :8].isnan().all()
        for place in (8, 9):
            song, before = int(made.items[row, place]), [song for song in made.items[row, :place].tolist() if song]
            if song:
                assert song not in world.excluded(row) and song not in before
                assert world.room_for(row, song, before, 10)
                assert 1 / 6 <= float(made.propensity[row, place]) <= 1


def test_a_song_is_drawn_as_often_as_its_propensity_says() -> None:
    world = random_world(5, listeners=1, explore=1, explore_pool=5, segments={}, max_per_artist=0, one_version=False)
    world.histories = replace(world.histories.take(np.zeros(4000, int)), user_id=pa.array(np.arange(4000)))
    world.facts = ListenerFacts(np.full(4000, "", object))
    world.scores = world.scores[:1].expand(4000, -1)
    made = world.rules(6).lists(world.recommender, world.contexts, 6)
    last = made.propensity.isnan().logical_not()
    assert int(last.sum()) == 4000
    assert torch.allclose(made.propensity[last], torch.tensor(1 / 5))
    counts = np.unique(made.items[last].numpy(), return_counts=True)[1]
    assert len(counts) == 5
    assert np.abs(counts - 800).max() < 5 * np.sqrt(800 * 0.8)


def test_draws_are_the_same_again_and_others_on_another_day() -> None:
    assert torch.equal(explored(6, 40)[1].items, explored(6, 40)[1].items)
    assert not torch.equal(explored(6, 40)[1].items, explored(6, 40, day=86_400)[1].items)
    assert not torch.equal(explored(6, 40)[1].items, explored(6, 40, explore_seed=1)[1].items)


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_every_better_song_that_is_not_listed_has_its_rule(seed: int, rules: dict[str, Any]) -> None:
    world = random_world(seed, **rules)
    engine, k = world.rules(8), 8
    made = engine.lists(world.recommender, world.contexts, k)
    named = set()
    rows = range(len(world.histories))
    for row, found in enumerate(Explanations(engine, world.recommender, world.contexts, made).passed_over(rows)):
        listed = [song for song in made.items[row].tolist() if song]
        if not listed:
            assert not found
            continue
        last = min((float(world.scores[row, song]), -song) for song in listed)
        better = [s for s in range(1, 61) if (float(world.scores[row, s]), -s) > last and s not in listed]
        assert {each.item for each in found} == set(better)
        for each in found:
            named.add(each.rule)
            forbidden = each.item in world.excluded(row) or not world._allowed(row, each.item)
            ahead = [s for s in listed if (float(world.scores[row, s]), -s) > (each.score, -each.item)]
            if each.rule in ("another version", "artist cap", "known share"):
                assert not forbidden
                assert not world.room_for(row, each.item, listed if world.config.new_releases else ahead, k)
            elif each.rule == QUOTA:
                assert not forbidden and world.config.new_releases
            else:
                assert forbidden
    assert {"not available", "blocked"} & named


def test_a_list_that_the_catalogue_cannot_fill_is_short_with_the_rest_empty() -> None:
    world = random_world(2, listeners=3, segments={})
    world.songs = SongFacts(61, artist=torch.ones(61, dtype=torch.int64))
    world.facts = ListenerFacts(np.full(3, "", object))
    made = world.rules(5).lists(world.recommender, world.contexts, 5)
    assert (made.items > 0).sum(1).tolist() == [2, 2, 2]
    assert made.scores[:, 2:].isneginf().all()
