"""Plays in memory become shards: against plain dictionaries and sorts, and refused by column where they cannot."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.histories.shards import read_item_counts, read_manifest
from pipelines.imports.plays import VOCABULARY_FILE, write_histories
from pipelines.schema import vocabulary_table

LAST = 1_772_409_599  # 2026-03-01 23:59:59 UTC


def random_plays(kind: str, count: int = 3000) -> list[tuple]:
    """(user, song, second, completion): many ties, some plays again."""
    rng = np.random.default_rng(4)
    users, songs = rng.integers(0, 60, count).tolist(), (rng.integers(1, 90, count) * 7).tolist()
    times, percent = (LAST - 600 * rng.integers(0, 40, count)).tolist(), rng.integers(0, 101, count).tolist()
    rows = list(zip(users, songs, times, percent, strict=True))
    rows += [(user, song, time, done // 2) for user, song, time, done in rows[:200]]
    if kind == "string":
        rows = [(f"ü{user}", f"{song}", time, done) for user, song, time, done in rows]
    return rows


def table_of(rows: list[tuple]) -> pa.Table:
    names = ["user_id", "item_id", "timestamp", "completion"]
    return pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_histories_are_the_plays_of_each_listener_with_ties_in_source_order(tmp_path: Path, kind: str) -> None:
    rows = random_plays(kind)
    folder = str(tmp_path / "shards")
    manifest, vocabulary = write_histories(table_of(rows), folder, buckets=4, max_history=20, row_group_events=100)
    songs = sorted({row[1] for row in rows})
    expected: dict = {}
    for user, song, time, done in rows:
        expected.setdefault(user, {}).setdefault((time, songs.index(song) + 1), []).append(done)
    found = {}
    for file in manifest.files:
        assert len(file.row_groups) > 1
        for row in manifest.read(file).to_pylist():
            found[row["user_id"]] = row
            assert user_bucket(pa.array([row["user_id"]]), 4).tolist() == [file.bucket]
    assert set(found) == set(expected)
    for user, plays in expected.items():
        ordered = sorted(plays, key=lambda play: play[0])  # Python's sort is stable, as dictionaries are in order
        kept, row = ordered[-20:], found[user]
        assert row["item_index"] == [song for _, song in kept]
        assert row["timestamp"] == [time for time, _ in kept]
        assert row["completion"] == [max(plays[play]) for play in kept]
        assert row["heard_before"] == sorted({song for _, song in ordered[:-20]})
    assert vocabulary.schema == vocabulary_table(kind).schema and vocabulary["item_id"].to_pylist() == songs
    assert vocabulary["item_index"].to_pylist() == list(range(1, len(songs) + 1))
    assert manifest.counts["duplicates"] == len(rows) - sum(map(len, expected.values()))
    fans = [len({user for user, song, *_ in rows if song == wanted}) for wanted in songs]
    assert read_item_counts(manifest).tolist() == [0, *fans]


def test_what_is_written_is_read_back_without_the_source(tmp_path: Path) -> None:
    folder = str(tmp_path / "shards")
    manifest, vocabulary = write_histories(table_of(random_plays("int64")), folder)
    assert read_manifest(folder) == manifest
    assert storage.read_table(f"{folder}/{VOCABULARY_FILE}") == vocabulary
    assert (manifest.ds, manifest.data_end) == (dt.date(2026, 3, 2), LAST + 1)
    assert vocabulary["first_ds"].unique().to_pylist() == [manifest.ds]
    assert (manifest.user_id_type, manifest.item_id_type, manifest.parent) == ("int64", "int64", None)


def test_a_play_without_completion_was_heard_to_the_end_and_other_columns_are_ignored(tmp_path: Path) -> None:
    plays = pa.table(
        {
            "rating": ["good", "bad"],
            "item_id": pa.array([3, 4], pa.uint16()),
            "user_id": pa.chunked_array([["b"], ["a"]]),
            "timestamp": pa.array([1000, 2000], pa.timestamp("ms", "Europe/Berlin")),
        }
    )
    manifest, _ = write_histories(plays, str(tmp_path), ds=dt.date(1970, 1, 2), timezone="Europe/Berlin")
    rows = manifest.read(manifest.files[0]).to_pylist()
    assert [(row["user_id"], row["item_index"], row["timestamp"], row["completion"]) for row in rows] == [
        ("a", [2], [2], [100]),
        ("b", [1], [1], [100]),
    ]
    assert manifest.data_end == 23 * 3600  # 00:00 in Berlin


PLAYS = {"user_id": [1, 2], "item_id": [5, 6], "timestamp": [10, 20], "completion": [0, 100]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": None}, r"column item_id is missing \(found user_id, timestamp, completion\): add it"),
        ({"user_id": ["a", None]}, "column user_id has 1 nulls, the first in row 1"),
        ({"timestamp": [None, None]}, "column timestamp has 2 nulls, the first in row 0"),
        ({"timestamp": ["yesterday", "today"]}, "column timestamp is string, expected whole numbers"),
        ({"timestamp": [10**12, 10]}, "timestamp is up to 1000000000000, expected Unix seconds"),
        ({"item_id": [1.5, 2.0]}, "column item_id is double, expected whole numbers"),
        ({"user_id": [[1], [2]]}, r"column user_id is list<.*>, expected whole numbers"),
        ({"completion": [0, 101]}, "completion is from 0 to 101, expected percent"),
        ({"completion": [-1, 100]}, "completion is from -1 to 100, expected percent"),
    ],
)
def test_plays_that_cannot_be_stored_are_refused_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    columns = {name: values for name, values in (PLAYS | change).items() if values is not None}
    with pytest.raises(InputError, match=message) as refused:
        write_histories(pa.table(columns), str(tmp_path / "shards"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("plays", "options", "message"),
    [
        (PLAYS, {"buckets": 3}, "buckets is 3: it must be a power of two"),
        (PLAYS, {"buckets": 0}, "buckets is 0"),
        (PLAYS, {"ds": dt.date(1970, 1, 1)}, "the last is on 1970-01-01, not before ds 1970-01-01"),
        (PLAYS, {"timezone": "Mars/Olympus"}, "timezone 'Mars/Olympus' is unknown"),
        ({name: pa.array([], pa.int64()) for name in PLAYS}, {}, "there are no rows"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, plays: dict, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_histories(pa.table(plays), str(tmp_path / "shards"), **options)
    assert not (tmp_path / "shards").exists()


def test_on_an_object_store(s3: str) -> None:
    manifest, _ = write_histories(pa.table(PLAYS), f"{s3}/plays")
    assert read_manifest(f"{s3}/plays") == manifest
    assert manifest.histories(manifest.files[0], 0).item_index.tolist() == [1, 2]
