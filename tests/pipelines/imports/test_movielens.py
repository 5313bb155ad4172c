"""MovieLens files become the shards and the vocabulary that logs become."""

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands import import_movielens
from jobs.config import Config, load_config
from jobs.day import open_day
from jobs.serving.catalogue import titles
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.buckets import user_bucket
from pipelines.histories.shards import Manifest, read_item_counts, read_manifest
from pipelines.imports import movielens

# user, item, rating, timestamp; user 7 rated two films in one second, the higher id first.
RATINGS = [
    (7, 30, 5, 978_300_760),
    (7, 10, 3, 978_300_760),
    (7, 20, 4, 978_302_109),
    (1, 20, 4, 978_300_000),
    (2, 10, 1, 978_400_000),
    (1, 40, 2, 978_310_000),
    (7, 30, 5, 978_300_760),
]
LAST_DAY = dt.date(2001, 1, 2)  # of 978_400_000


def write(folder: Path, name: str, lines: list[str]) -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_format(folder: Path, name: str) -> str:
    if name == "ratings.dat":
        return write(folder, name, ["::".join(map(str, row)) for row in RATINGS])
    if name == "ratings.csv":
        return write(folder, name, ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in RATINGS)])
    if name == "u.data":
        return write(folder, name, ["\t".join(map(str, row)) for row in RATINGS])
    user, item, rating, timestamp = zip(*RATINGS, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(user, pa.int32()),
            "item_id": pa.array(item, pa.int32()),
            "timestamp": pa.array(timestamp, pa.int64()),
            "rating": pa.array(rating, pa.int8()),
        }
    )
    pq.write_table(table, folder / name)
    return str(folder / name)


def config(folder: Path, *overrides: str) -> Config:
    return load_config(overrides=[f"workspace={folder}/workspace", "sequences.buckets=4", *overrides], environment={})


def histories(manifest: Manifest) -> dict[int, dict]:
    rows = [row for file in manifest.files for row in manifest.read(file).to_pylist()]
    return {row["user_id"]: row for row in rows}


def imported(folder: Path, ds: dt.date) -> tuple[Manifest, dict[int, dict]]:
    manifest = read_manifest(f"{folder}/workspace/sequences/ds={ds}")
    return manifest, histories(manifest)


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.csv", "u.data", "ratings.parquet"])
def test_every_format_gives_the_same_histories_with_ties_in_file_order(tmp_path: Path, name: str):
    path = write_format(tmp_path, name)
    result = import_movielens.run(config(tmp_path), path)

    assert result["ds"] == "2001-01-03"  # the day after the last rating
    assert (result["accepted"], result["duplicates"], result["listeners"], result["songs"]) == (7, 1, 3, 4)
    manifest, rows = imported(tmp_path, dt.date(2001, 1, 3))
    # Films 10, 20, 30, 40 have indices 1..4: user 7's tie keeps 30 before 10.
    assert rows[7]["item_index"] == [3, 1, 2]
    assert rows[7]["timestamp"] == [978_300_760, 978_300_760, 978_302_109]
    assert rows[7]["completion"] == [100, 100, 100]
    assert rows[7]["session_index"] == [0, 0, 0]
    assert rows[7]["heard_before"] == [] and rows[7]["num_events"] == 3
    assert rows[1]["item_index"] == [2, 4] and rows[1]["session_index"] == [0, 1]
    assert manifest.vocabulary_size == 4 and manifest.parent is None
    assert read_item_counts(manifest).tolist() == [0, 2, 2, 1, 1]
    for file in manifest.files:
        users = manifest.read(file)["user_id"]
        assert set(user_bucket(users, 4)) == {file.bucket}


def test_order_and_ties_survive_many_users_against_a_plain_sort(tmp_path: Path):
    rng = np.random.default_rng(3)
    seen, rows = set(), []
    for _ in range(5000):
        row = (int(rng.integers(1, 60)), int(rng.integers(1, 200)), 3, 10**9 + int(rng.integers(0, 50)) * 1000)
        if (row[0], row[1], row[3]) not in seen:
            seen.add((row[0], row[1], row[3]))
            rows.append(row)
    path = write(tmp_path, "ratings.dat", ["::".join(map(str, row)) for row in rows])
    result = import_movielens.run(config(tmp_path, "sequences.max_history=50"), path)
    _, found = imported(tmp_path, dt.date.fromisoformat(result["ds"]))
    films = sorted({row[1] for row in rows})
    for user in {row[0] for row in rows}:
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[3])  # Python's sort is stable
        expected = [films.index(row[1]) + 1 for row in mine]
        assert found[user]["item_index"] == expected[-50:]
        assert found[user]["heard_before"] == sorted(set(expected[:-50]))


def test_the_whole_catalogue_is_indexed_and_titles_are_found(tmp_path: Path):
    path = write_format(tmp_path, "ratings.dat")
    (tmp_path / "movies.dat").write_bytes(
        "5::Café (1999)::Drama\n10::Toy Story (1995)::Comedy\n99::Z::War\n".encode("latin-1")
    )
    configuration = config(tmp_path)
    result = import_movielens.run(configuration, str(tmp_path))  # the folder
    assert path and result["songs"] == 6
    manifest, rows = imported(tmp_path, dt.date(2001, 1, 3))
    songs = vocabulary.read(f"{tmp_path}/workspace/vocabulary", "int64").table
    assert songs["item_id"].to_pylist() == [5, 10, 20, 30, 40, 99]
    assert rows[7]["item_index"] == [4, 2, 3] and manifest.vocabulary_size == 6
    day = open_day(configuration, dt.date(2001, 1, 3))
    assert titles(day, [5, 10, 20]) == {5: ("Café (1999)", ""), 10: ("Toy Story (1995)", "")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movies.csv", 'movieId,title,genres\n5,"Café, the (1999)",Drama\n10,Plain (1995),Comedy\n'),
        ("u.item", "5|Café, the (1999)|01-Jan-1995||http://x|0|1\n10|Plain (1995)|01-Jan-1995||http://y|0|1\n"),
        ("movies.dat", "5::Café, the (1999)::Drama\n10::Plain (1995)::Comedy\n"),
    ],
)
def test_titles_of_every_format(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_bytes(content.encode("utf-8" if name.endswith("csv") else "latin-1"))
    table = movielens.read_movies(str(tmp_path / name))
    assert table["item_id"].to_pylist() == [5, 10]
    assert table["title"].to_pylist() == ["Café, the (1999)", "Plain (1995)"]


def test_bad_lines_are_quarantined_with_their_number_and_the_rest_is_imported(tmp_path: Path):
    lines = ["::".join(map(str, row)) for row in RATINGS]
    lines[2:2] = ["7::x::4::978302109", "", "7::20::4", "café::1::1::1", "7::20::4::978302109::9"]
    path = write(tmp_path, "ratings.dat", lines)
    result = import_movielens.run(config(tmp_path, "logs.max_rejected_share=0.5"), path)
    assert result["rejected"]["malformed_line"] == 4 and result["accepted"] == 7
    (file,) = storage.list_files(f"{tmp_path}/workspace/quarantine/ds=2001-01-03")
    rows = storage.read_table(file.uri).to_pylist()
    assert [(row["source_file"].rsplit(":", 1)[1], row["row"]) for row in rows] == [
        ("3", "7::x::4::978302109"),
        ("5", "7::20::4"),
        ("6", "café::1::1::1"),
        ("7", "7::20::4::978302109::9"),
    ]


def test_too_many_bad_lines_are_refused_in_one_line_naming_the_first(tmp_path: Path):
    path = write(tmp_path, "ratings.dat", ["1::2::3::4", "oops", "1::x::3::4"])
    with pytest.raises(InputError, match=r"ratings.dat: 2 of 3 lines .* the first is line 2: 'oops'$"):
        import_movielens.run(config(tmp_path), path)
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings.dat", b"", "holds no ratings .it is empty.: expected UserID::MovieID"),
        ("ratings.csv", b'{"a": 1}\n', r"holds no ratings .line 1 is '\{\"a\": 1\}'.: expected userId,movieId"),
        ("u.data", b"1,2,3,4\n", "holds no ratings .line 1 is '1,2,3,4'.: expected .* tabs"),
        ("ratings.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("ratings.txt", b"1 2 3 4", "the ending .txt is unknown"),
    ],
)
def test_a_file_that_is_no_ratings_file_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        movielens.read_ratings(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_files_columns_and_types_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is not there"):
        movielens.find_ratings(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds none of ratings\.dat"):
        movielens.find_ratings(str(tmp_path))
    pq.write_table(pa.table({"user_id": [1], "item_id": [2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column timestamp is missing"):
        movielens.read_ratings(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"user_id": ["u"], "item_id": [2], "timestamp": [3]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="column user_id is string, expected whole numbers"):
        movielens.read_ratings(str(tmp_path / "b.parquet"))
    with pytest.raises(InputError, match="MovieLens ids need int64"):
        import_movielens.run(config(tmp_path, "sequences.user_id_type=string"), str(tmp_path / "a.parquet"))


def test_an_earlier_ds_leaves_later_ratings_out(tmp_path: Path):
    path = write_format(tmp_path, "ratings.dat")
    result = import_movielens.run(config(tmp_path), path, ds=LAST_DAY)
    assert result["rejected"] == {"after_ds": 1} and result["listeners"] == 2
    manifest, rows = imported(tmp_path, LAST_DAY)
    assert 2 not in rows and manifest.data_end == 978_393_600


def test_the_same_file_again_is_skipped_and_a_changed_one_is_taken(tmp_path: Path):
    path = write_format(tmp_path, "ratings.dat")
    first = import_movielens.run(config(tmp_path), path)
    again = import_movielens.run(config(tmp_path), path)
    assert again.get("skipped") and again["events"] == first["events"]
    Path(path).write_text(Path(path).read_text() + "9::10::3::978300000\n")
    changed = import_movielens.run(config(tmp_path), path)
    assert "skipped" not in changed and changed["listeners"] == 4
    _, rows = imported(tmp_path, dt.date(2001, 1, 3))
    assert rows[9]["item_index"] == [1]


def test_the_import_leaves_what_the_next_stages_ask_for(tmp_path: Path):
    configuration = config(tmp_path)
    import_movielens.run(configuration, write_format(tmp_path, "ratings.csv"))
    day = open_day(configuration, dt.date(2001, 1, 3))
    assert day.has_record and day.marker("sessionize") is not None
    assert day.workspace.days_with_sequences() == [day.ds]


@pytest.mark.skipif("MOVIELENS_FILE" not in os.environ, reason="MOVIELENS_FILE names no ratings file")
def test_a_real_file_is_imported_whole(tmp_path: Path):
    uri = movielens.find_ratings(os.environ["MOVIELENS_FILE"])
    result = import_movielens.run(config(tmp_path, "sequences.max_history=100000"), uri)
    assert result["events"] == result["rows_read"] and not result["rejected"]
