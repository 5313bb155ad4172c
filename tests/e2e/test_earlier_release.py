"""A workspace that release 0.1.0 wrote (tests/data/README.md): all of it is read, and the next day builds on it."""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs.config import Config, load_config
from jobs.daily import DayResult, run_day
from jobs.day import Day, open_day, run_stage
from jobs.registry.relocate import relocate
from pipelines.histories.shards import read_manifest

ARCHIVE = Path(__file__).parents[1] / "data" / "workspace-0.1.0.tar.xz"
DAY_ONE, DAY_TWO, DAY_THREE = (dt.date(2026, 1, day) for day in (19, 20, 21))


def unpacked(folder: Path) -> Path:
    """The workspace, which was at another place; its newest logs in a folder of their own."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    root = folder / "workspace"
    (root / "new-logs").mkdir()
    (root / "logs" / "plays" / f"ds={DAY_TWO}").rename(root / "new-logs" / f"ds={DAY_TWO}")
    return root


def configuration(root: Path) -> Config:
    """What the workspace was made with; the logs are those that no day has read."""
    settings = {
        "workspace": root,
        "logs.path": root / "new-logs",
        "logs.catalogue": root / "logs" / "catalogue",
        "sequences.buckets": 2,
        "sequences.max_history": 60,
        "cluster.spark_master": "local[2]",
        "model.dim": 16,
        "model.layers": 1,
        "model.max_history": 20,
        "train.epochs": 20,
        "train.learn_from": "first_listens",  # as it did
        "train.batch_size": 16,
        "train.lr": 0.01,
        "train.item_optimizer": "adamw",
        "train.min_listeners": 2,
        "train.negatives": 32,
    }
    return load_config(overrides=[f"{key}={value}" for key, value in settings.items()], environment={})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = unpacked(tmp_path_factory.mktemp("earlier-release"))
    assert relocate(str(root)) and not relocate(str(root))
    return configuration(root)


@pytest.fixture(scope="module")
def day_three(config: Config, spark: Any, ray_local: Any) -> DayResult:
    return run_day(open_day(config, DAY_THREE))


def lists_of(day: Day) -> pl.DataFrame:
    """The published rows of a ds, read by Polars."""
    files = [file for file in DeltaTable(day.workspace.recommendations).file_uris() if f"ds={day.ds}" in file]
    return pl.read_parquet(files, hive_partitioning=False)


def test_the_same_shards_and_model_give_the_lists_that_were_published_then(config: Config) -> None:
    from jobs.serving.make_lists import default_part, make_part
    from jobs.stages.recommend import list_job

    """Under the rules of then: heard songs out, and no other."""
    plain = {"listed_days": 0, "max_per_artist": 0, "space_artists": False}
    rules = config.rules.model_copy(update=plain)
    day = open_day(config.model_copy(update={"rules": rules}), DAY_TWO)
    then = lists_of(day).sort("user_id")
    job = list_job(day)
    parts = [default_part(job), *(make_part(job, file) for file in job.manifest.files)]
    now = pl.concat([pl.from_arrow(pq.read_table(f"{job.table_uri}/{part.path}")) for part in parts]).sort("user_id")  # type: ignore[type-var]
    assert then.height > 90
    assert then.drop("items").equals(now.drop("items", "segment", "short"))
    listed, listed_then = now["items"].explode(), then["items"].explode()
    assert listed.struct.field("item_id").equals(listed_then.struct.field("item_id"))
    np.testing.assert_allclose(listed.struct.field("score"), listed_then.struct.field("score"), atol=1e-5)


def test_a_finished_day_is_still_finished(config: Config) -> None:
    """But for the stage that there was not: the lists of the day before are measured, and are on the day's page."""
    root = Path(config.workspace)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.json")}
    result = run_day(open_day(config, DAY_TWO))
    assert not result.degraded
    after = {file: file.stat().st_mtime_ns for file in root.rglob("*.json")}
    assert {file.name for file in before if after[file] != before[file]} == {"report.json"}
    new = {file.relative_to(root).as_posix() for file in after.keys() - before.keys()}
    of_stages = {path for path in new if not path.startswith("list_hits/")}
    of_pages = {f"reports/ds={DAY_TWO}/_digests.json", "reports/_digests.json", "reports/index.json"}
    assert of_stages == {f"runs/ds={DAY_TWO}/hits.json", *of_pages}
    (measured,) = result.stages["hits"]["days"]
    assert measured["ds"] == str(DAY_ONE) and measured["lists"] > 90 and measured["played"] > 10


def test_training_goes_on_from_a_checkpoint_and_takes_the_steps_that_were_taken_then(
    ray_local: Any, tmp_path: Path
) -> None:
    """As if the driver had been killed after the first of two epochs, while it wrote its list of checkpoints."""
    from jobs.stages import train

    root = unpacked(tmp_path)
    run = root / "runs" / f"ds={DAY_TWO}"
    then = json.loads((run / "train.json").read_text())["result"]
    (run / "train.json").unlink()
    (checkpoints,) = (run / "checkpoints").iterdir()
    (checkpoints / "checkpoint_manager_snapshot.json").unlink()
    _, newest = sorted(folder for folder in checkpoints.iterdir() if folder.is_dir())
    shutil.rmtree(newest)
    result = run_stage(open_day(configuration(root), DAY_TWO), "train", train.run)
    assert result["resumed_at"] == [8]
    assert result["steps"] == 16
    curve, curve_then = np.array(result["loss_curve"]), np.array(then["loss_curve"])
    np.testing.assert_allclose(curve[:8], curve_then[:8], rtol=1e-5)
    # The rest draws its negatives from other songs: this release counts `min_listeners` before the targets end.
    np.testing.assert_allclose(curve[8:], curve_then[8:], rtol=0.25)


def test_the_pyfunc_of_then_answers_with_the_code_it_carries(config: Config, tmp_path: Path) -> None:
    script = (
        "import sys, mlflow\n"
        f"mlflow.set_tracking_uri('sqlite:///{config.workspace}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/fuxi-beta-daily/2')\n"
        "print(len(model.predict(model.input_example)['items'][0]), 'fuxi_beta.batches' in sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["10", "True"], done.stderr


def test_the_next_day_is_laid_over_the_old_shards_and_starts_from_the_old_champion(
    config: Config, day_three: DayResult
) -> None:
    assert not day_three.degraded
    day = open_day(config, DAY_THREE)
    assert day.record.parent_sequences == str(DAY_TWO)
    assert day.record.parent_model == "1"  # version 2 failed a gate
    manifest = read_manifest(day.workspace.sequences(DAY_THREE))
    assert [len(file.increments) for file in manifest.files] == [2, 2]
    assert lists_of(day)["user_id"].n_unique() == lists_of(day).height > 90


def test_what_lists_are_like_is_known_from_the_first_new_day_on(config: Config, day_three: DayResult) -> None:
    rows = pl.read_delta(f"{config.workspace}/list_quality")
    assert rows["ds"].unique().to_list() == [DAY_THREE] and rows["segment"].unique().to_list() == ["all"]
    overlap, listeners = rows.row(by_predicate=pl.col("metric") == "overlap")[3:]
    assert (overlap, listeners > 90) == (0.0, True)  # songs of the old table's lists are kept out, and counted


def test_the_lists_of_earlier_days_stay_as_they_were(config: Config, day_three: DayResult, tmp_path: Path) -> None:
    then = configuration(unpacked(tmp_path))
    for ds in (DAY_ONE, DAY_TWO):
        assert lists_of(open_day(config, ds)).equals(lists_of(open_day(then, ds)))
