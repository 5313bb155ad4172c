"""The benchmark of the day after: its check of equality finds a difference, its rewritten days have their plays."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.day_after import check_equal, content, link_folder, rewrite_day
from benchmarks.lib.contestants import Work, our_settings
from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines.histories.shards import read_manifest

DAY = 86_400
LANDED = 1_767_571_200  # 2026-01-05


def land(logs, number, *, shift=0):
    """A landing day; `shift` seconds are added to the time of one play."""
    rng = np.random.default_rng(number)
    at = LANDED + number * DAY + rng.integers(0, DAY // 600, 300) * 600
    at[7] += shift
    table = pa.table({"user_id": rng.integers(0, 30, 300), "item_id": rng.integers(0, 40, 300), "timestamp": at})
    folder = logs / f"ds=2026-01-0{5 + number}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part-0.parquet")
    return folder


def sessionized(folder, logs, *days):
    """The manifest of the last ds, each run in turn."""
    for ds in days:
        settings = our_settings(Work(str(logs), str(folder), ds, buckets=8, cores=2, memory_gb=0))
        config = load_config(environment={}, overrides=[s for s in settings if not s.startswith("cluster.")])
        run_stage(open_day(config, dt.date.fromisoformat(ds)), "sessionize", sessionize.run)
    return read_manifest(f"{folder}/workspace/sequences/ds={days[-1]}")


@pytest.mark.usefixtures("spark")
def test_merged_and_full_are_equal_and_one_play_a_second_later_is_a_difference(tmp_path):
    logs = tmp_path / "logs"
    for number in range(2):
        land(logs, number)
    full = sessionized(tmp_path / "full", logs, "2026-01-07")
    merged = sessionized(tmp_path / "merged", logs, "2026-01-06", "2026-01-07")
    assert any(file.increments for file in merged.files)
    check_equal("same", merged, full)

    land(tmp_path / "other", 0, shift=1)
    land(tmp_path / "other", 1)
    other = sessionized(tmp_path / "changed", tmp_path / "other", "2026-01-06", "2026-01-07")
    assert {name for name, digest in content(full).items() if digest != content(other)[name]} == {"timestamp"}
    with pytest.raises(RuntimeError, match="later: merged and full differ in timestamp"):
        check_equal("later", other, full)
    with pytest.raises(RuntimeError, match="has no"):
        check_equal("two builds", full, full)


def test_a_rewritten_day_has_as_many_plays_by_the_given_listeners_alone(tmp_path):
    source = land(tmp_path / "logs", 0)
    among = np.array([5, 900, 901])
    rewrite_day(source, tmp_path / "rewritten", among)
    before, after = (pq.read_table(folder / "part-0.parquet") for folder in (source, tmp_path / "rewritten"))
    assert np.unique(after["user_id"].to_numpy(), return_counts=True)[1].tolist() == [100, 100, 100]
    assert after.drop(["user_id"]) == before.drop(["user_id"])
    link_folder(source, tmp_path / "linked" / "day")
    assert pq.read_table(tmp_path / "linked" / "day" / "part-0.parquet") == before
