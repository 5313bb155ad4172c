"""Skewed and extreme logs through `fuxi sessionize`: nothing breaks, and what is stored is what a plain sort gives."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines import storage
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import read_item_counts, read_manifest

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)
START = Calendar().day_start(FIRST)
MAX_HISTORY = 100


def put(logs, day, user, item, time, name="part-0.parquet"):
    table = pa.table({"user_id": np.asarray(user), "item_id": np.asarray(item), "timestamp": np.asarray(time)})
    folder = Path(logs) / f"ds={day}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return table


def run(tmp_path, ds, *overrides, buckets=4):
    where = [f"workspace={tmp_path}/workspace", f"logs.path={tmp_path}/logs", f"sequences.buckets={buckets}"]
    settings = load_config(
        environment={},
        overrides=[*where, f"sequences.max_history={MAX_HISTORY}", "quality.min_plays=1000000", *overrides],
    )
    day = open_day(settings, ds)
    return run_stage(day, "sessionize", sessionize.run), read_manifest(day.workspace.sequences(ds))


def stored(manifest):
    """user -> (times, songs, songs heard before)."""
    workspace = Path(manifest.folder).parent.parent
    known = vocabulary.read(str(workspace / "vocabulary"), manifest.item_id_type).table
    ids = np.concatenate([[0], known["item_id"].to_numpy()])
    found = {}
    for file in manifest.files:
        for row in manifest.read(file).to_pylist():
            heard = sorted(ids[row["heard_before"]].tolist())
            found[row["user_id"]] = (row["timestamp"], ids[row["item_index"]].tolist(), heard)
    assert sum(len(times) for times, _, _ in found.values()) == manifest.events
    assert len(found) == manifest.rows
    return found


def expected(user, item, time, who):
    """The same of one listener, from a plain sort."""
    mine = np.asarray(user) == who
    events = sorted(set(zip(np.asarray(time)[mine].tolist(), np.asarray(item)[mine].tolist(), strict=True)))
    kept, older = events[-MAX_HISTORY:], events[:-MAX_HISTORY]
    return [t for t, _ in kept], [i for _, i in kept], sorted({i for _, i in older})


def test_a_listener_with_most_events_and_a_song_with_a_third_of_all_plays(tmp_path):
    rng = np.random.default_rng(1)
    count = 260_000
    user = np.where(rng.random(count) < 0.8, 7, rng.integers(100, 5000, count))
    item = np.where(rng.random(count) < 0.3, 1, rng.integers(2, 400, count))
    time = START + rng.integers(0, DAY_SECONDS, count)
    put(tmp_path / "logs", FIRST, user, item, time)
    result, manifest = run(tmp_path, FIRST + dt.timedelta(days=1))
    found = stored(manifest)
    for who in (7, *np.unique(user[user != 7])[:50].tolist()):
        assert found[who] == expected(user, item, time, who)
    distinct = len(set(zip(user.tolist(), item.tolist(), time.tolist(), strict=True)))
    assert result["duplicates"] == count - distinct
    assert read_item_counts(manifest)[1] == len(np.unique(user[item == 1]))

    # The next day again most events are that listener's; what was kept and what was only heard are laid over.
    later = time + DAY_SECONDS
    put(tmp_path / "logs", FIRST + dt.timedelta(days=1), user, item, later)
    _, manifest = run(tmp_path, FIRST + dt.timedelta(days=2))
    both = np.concatenate([user, user]), np.concatenate([item, item]), np.concatenate([time, later])
    assert stored(manifest)[7] == expected(*both, 7)


def test_very_many_listeners_with_one_event_each(tmp_path):
    count = 300_000
    user = np.random.default_rng(2).permutation(count) * 1_000_003
    put(tmp_path / "logs", FIRST, user, np.arange(count) % 50 + 1, START + np.arange(count) % DAY_SECONDS)
    result, manifest = run(tmp_path, FIRST + dt.timedelta(days=1))
    assert (result["listeners"], result["events"], manifest.rows) == (count, count, count)
    users = np.concatenate([manifest.read(file, None, ["user_id"])["user_id"].to_numpy() for file in manifest.files])
    assert np.array_equal(np.sort(users), np.sort(user))


def test_a_listener_with_events_on_three_thousand_landing_days(tmp_path):
    first = dt.date(2018, 1, 1)
    start = Calendar().day_start(first)
    time = start + np.arange(3000) * DAY_SECONDS + 36_000
    for number in range(3000):
        put(tmp_path / "logs", first + dt.timedelta(days=number), [7, number], [number + 1, 1], [time[number]] * 2)
    result, manifest = run(tmp_path, first + dt.timedelta(days=3000))
    assert (result["rows_read"], result["listeners"]) == (6000, 3000)
    times, songs, heard = stored(manifest)[7]
    assert times == time[-MAX_HISTORY:].tolist() and songs == list(range(2901, 3001)) and heard == list(range(1, 2901))


def test_sixty_five_thousand_buckets_of_which_a_few_hundred_hold_somebody(tmp_path):
    user = np.arange(300) * 7919
    put(tmp_path / "logs", FIRST, user, user % 9 + 1, START + user % 1000)
    _, first = run(tmp_path, FIRST + dt.timedelta(days=1), buckets=65_536)
    put(tmp_path / "logs", FIRST + dt.timedelta(days=1), user[:5], user[:5] % 9 + 2, START + DAY_SECONDS + user[:5])
    result, second = run(tmp_path, FIRST + dt.timedelta(days=2), buckets=65_536)
    assert (first.rows, result["events"], len(second.files)) == (300, 305, len(first.files))
    assert len(first.files) > 290 and len(stored(second)) == 300
    assert sum(len(file.increments) for file in second.files) == 5
    assert {file.home for file in second.files} == {str(first.ds)}


def test_a_day_whose_only_events_are_late_is_laid_between_the_older_ones(tmp_path):
    rng = np.random.default_rng(4)
    user, item, time = (
        rng.integers(0, 40, 2000),
        rng.integers(1, 30, 2000),
        START + rng.integers(0, 5 * DAY_SECONDS, 2000),
    )
    half = rng.random(2000) < 0.5
    last = FIRST + dt.timedelta(days=5)
    put(tmp_path / "logs", last, user[half], item[half], time[half])
    run(tmp_path, last + dt.timedelta(days=1))
    again = np.concatenate([np.flatnonzero(~half), np.flatnonzero(half)[:100]])
    put(tmp_path / "logs", last + dt.timedelta(days=1), user[again], item[again], time[again])
    result, manifest = run(tmp_path, last + dt.timedelta(days=2))
    assert stored(manifest) == {who: expected(user, item, time, who) for who in range(40)}
    new = set(zip(user[~half].tolist(), item[~half].tolist(), time[~half].tolist(), strict=True))
    old = set(zip(user[half].tolist(), item[half].tolist(), time[half].tolist(), strict=True))
    assert result["duplicates"] == len(again) - len(new - old)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    put(tmp_path / "logs", FIRST, np.arange(1000), np.arange(1000) % 9 + 1, START + np.arange(1000))
    monkeypatch.setattr(storage, "free_bytes", lambda uri: 9000)
    with pytest.raises(
        InputError, match=r"workspace: 9.0 kB free, ds 2026-03-03 needs [0-9.]+ [kM]B .*free some space"
    ):
        run(tmp_path, FIRST + dt.timedelta(days=1))
    names = {path.name for path in Path(tmp_path, "workspace").iterdir()}
    assert names == {"_workspace.json", "runs"}
