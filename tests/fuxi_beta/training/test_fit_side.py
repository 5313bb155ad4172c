"""Training with side information in this process: new songs are listed by it, and nothing leaks from after the cut."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fuxi_beta import load_export, save_export
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.side import side_information
from fuxi_beta.training.checkpoint import load_side_vocabulary
from fuxi_beta.training.fit import Fitted, fit, known_songs
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

ARTISTS, PLAYED, SONGS, DAY = 4, 28, 32, 86_400
END = 60 * DAY
LATER = dt.date(1970, 3, 3)
MODEL = ModelConfig(dim=16, layers=1, max_history=12, dropout=0.1, side=("artist",), content="vector")
TRAIN = TrainConfig(epochs=8, batch_size=8, negatives=16, lr=0.01, item_optimizer="adamw", min_listeners=2, seed=3)
NEW = {29: 0, 30: 1, 31: 2, 32: 3}
"""Songs that nobody has played, and their artists; the last is released after the end."""


def artist_of(song: int) -> int:
    return (song - 1) % ARTISTS


@pytest.fixture
def manifest(make_shards) -> Manifest:
    """Every listener plays the songs of one artist, in any order and again and again."""
    random = np.random.default_rng(0)
    buckets = [{}, {}]
    for user in range(80):
        songs = np.arange(user % ARTISTS + 1, PLAYED + 1, ARTISTS)
        times = np.sort(random.integers(0, END, 10))
        buckets[user % 2][user] = [(int(song), int(t), 100) for song, t in zip(random.choice(songs, 10), times)]  # noqa: B905
    return make_shards(buckets, vocabulary_size=SONGS, data_end=END, row_group_events=100)


def catalogue() -> pa.Table:
    released = [dt.date(1970, 1, 1)] * (SONGS - 1) + [LATER]
    vectors = [[1.0, float(song % 3)] for song in range(1, SONGS + 1)]
    artists = [f"artist {artist_of(song)}" for song in range(1, SONGS + 1)]
    return pa.table({"artist": artists, "vector": vectors, "release_date": released})


def trained(manifest: Manifest, rows: pa.Table | None = None, **model) -> Fitted:
    return fit(manifest, model=replace(MODEL, **model), train=TRAIN, catalogue=catalogue() if rows is None else rows)


def listed(fitted: Fitted, manifest: Manifest, k: int = 12) -> list[tuple[int, list[int]]]:
    """Each listener's artist, and the list for the end."""
    histories = manifest.histories(manifest.files[0])
    items, _ = fitted.model.recommend(fitted.model.batch(histories, request_time=END), k)
    return [(user % ARTISTS, [i for i in row if i]) for user, row in zip(histories.user_id.to_pylist(), items.tolist())]  # noqa: B905


def test_new_songs_are_listed_by_what_is_known_of_them(manifest: Manifest) -> None:
    fitted = trained(manifest)
    assert fitted.model.item_vectors[[29, 30, 31, 32]].any(dim=1).all()
    hits = [new in songs[:6] for artist, songs in listed(fitted, manifest) for new in NEW if NEW[new] == artist]
    listeners = [artist for artist, _ in listed(fitted, manifest)]
    assert np.mean(hits) > 0.6 * (1 - listeners.count(3) / len(listeners))  # nobody's list has the last one
    plain = fit(manifest, model=replace(MODEL, side=(), content=None), train=TRAIN)
    assert not any(new in songs for _, songs in listed(plain, manifest) for new in NEW)


def test_songs_of_later_are_candidates_from_when_they_appear(manifest: Manifest) -> None:
    model, day = trained(manifest).model, Calendar().day_start(LATER)
    assert not model.candidates[32] and not model.as_of(day - 1).candidates[32]
    assert model.as_of(day).candidates[32] and model.as_of(day).candidates[1:33].all()
    assert not model.as_of(day).candidates[33:].any()
    assert torch.equal(model.as_of(day).as_of(END - 1).candidates, model.candidates)


def test_what_the_catalogue_says_of_later_songs_changes_no_vector_of_another(manifest: Manifest) -> None:
    rows = catalogue()
    future = rows.slice(0, SONGS - 1)  # without the song of later
    with_it, without = trained(manifest).model, trained(manifest, future).model
    assert torch.equal(with_it.item_vectors[:32], without.item_vectors[:32])
    assert torch.equal(with_it.candidates, without.candidates)
    for name, tensor in with_it.model.state_dict().items():
        assert torch.equal(tensor, without.model.state_dict()[name]), name


def test_a_catalogue_that_is_missing_is_named(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=r"model\.side names artist, but there is no catalogue"):
        fit(manifest, model=MODEL, train=TRAIN)
    with pytest.raises(InputError, match=r"model\.content names vector, which the catalogue lacks"):
        trained(manifest, catalogue().select(["artist"]))


def test_songs_that_only_some_have_heard_are_candidates_by_side_information(manifest: Manifest) -> None:
    known = known_songs(manifest, catalogue(), model=MODEL, train=TRAIN, data_end=END)
    few = known_songs(manifest, catalogue(), model=MODEL, train=replace(TRAIN, min_listeners=17), data_end=END)
    assert known.information is not None and few.information is not None
    assert few.candidates.sum() < known.candidates.sum() == PLAYED
    assert (few.information.listed_from[1:32] < END).all()
    assert np.array_equal(few.information.own, few.candidates)


def test_an_export_with_side_information_is_read_back(manifest: Manifest, tmp_path: Path) -> None:
    model = trained(manifest).model
    known = known_songs(manifest, catalogue(), model=MODEL, train=TRAIN, data_end=END)
    assert known.information is not None
    save_export(str(tmp_path / "export"), model, side_vocabulary=known.information.vocabulary)
    again = load_export(str(tmp_path / "export"))
    assert again.model_config == MODEL and again.model_config.side == ("artist",)
    assert again.listed_from is not None and model.listed_from is not None
    assert torch.equal(again.listed_from, model.listed_from)
    vocabulary = load_side_vocabulary(str(tmp_path / "export"))
    assert vocabulary is not None and vocabulary.pairs.equals(known.information.vocabulary.pairs)
    grown = side_information(
        catalogue(),
        model=MODEL,
        calendar=Calendar(),
        candidates=known.candidates,
        played=known.candidates,
        cut=END,
        parent=vocabulary,
    )
    assert grown is not None and grown.vocabulary.pairs.equals(vocabulary.pairs)
    save_export(str(tmp_path / "plain"), replace(model, listed_from=None))
    assert load_side_vocabulary(str(tmp_path / "plain")) is None
    assert load_export(str(tmp_path / "plain")).as_of(0).candidates.sum() == model.candidates.sum()
