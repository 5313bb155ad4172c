"""Songs of the catalogue get their index when they are released, if the model can list them by side information."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines.calendar import Calendar
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest, read_item_counts, read_manifest

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)
SIDE = "model.side=[artist]"


def put(root: Path, day: dt.date, songs: list[int]) -> None:
    """A play of each song by each of three listeners on a landing day."""
    rows = [(user, song, Calendar().day_start(day) + 60 * n) for user in (1, 2, 3) for n, song in enumerate(songs)]
    file = root / "logs" / f"ds={day}" / "part-0.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))), file)


def write_catalogue(root: Path, released: dict[int, dt.date]) -> None:
    columns = {"item_id": [*released], "artist": ["a"] * len(released), "release_date": [*released.values()]}
    (root / "catalogue").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), root / "catalogue" / "songs.parquet")


def sessionized(root: Path, ds: dt.date, *overrides: str) -> tuple[dict[str, Any], Manifest, list[int]]:
    """The result of the stage, the manifest, and the song ids by index."""
    where = (f"workspace={root}/workspace", f"logs.path={root}/logs", f"logs.catalogue={root}/catalogue")
    day = open_day(load_config(overrides=[*where, "sequences.buckets=2", *overrides], environment={}), ds)
    result = run_stage(day, "sessionize", sessionize.run)
    songs = vocabulary.read(day.workspace.vocabulary, "int64").table["item_id"].to_pylist()
    return result, read_manifest(day.workspace.sequences(ds)), songs


def test_songs_nobody_has_played_get_an_index_once_they_are_released(tmp_path: Path) -> None:
    second, third = FIRST + dt.timedelta(days=1), FIRST + dt.timedelta(days=2)
    put(tmp_path, FIRST, [30, 10])
    write_catalogue(tmp_path, {20: FIRST, 5: second, 40: third, 30: third})
    result, manifest, songs = sessionized(tmp_path, second, SIDE)
    assert songs == [5, 10, 20, 30]  # 40 is not released when the lists of the second day are requested
    assert (result["songs"], result["new_songs"], manifest.vocabulary_size) == (4, 4, 4)
    assert read_item_counts(manifest).tolist() == [0, 0, 3, 0, 3]
    put(tmp_path, second, [50, 40])
    assert sessionized(tmp_path, third, SIDE)[2] == [5, 10, 20, 30, 40, 50]


def test_without_side_information_only_songs_that_were_played_have_an_index(tmp_path: Path) -> None:
    put(tmp_path, FIRST, [30, 10])
    write_catalogue(tmp_path, {20: FIRST, 30: FIRST})
    assert sessionized(tmp_path, FIRST + dt.timedelta(days=1))[2] == [10, 30]
