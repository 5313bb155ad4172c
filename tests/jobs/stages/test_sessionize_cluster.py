"""`fuxi sessionize` on executors (`local-cluster`): what one machine publishes, also when an executor is killed."""

import contextlib
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines.calendar import Calendar
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest, read_item_counts, read_manifest

DAYS = [dt.date(2026, 3, 2) + dt.timedelta(days=n) for n in range(4)]
DS = DAYS[-1] + dt.timedelta(days=1)
FILES, ROWS = 5, 40_000  # of a day
COUNTS = ("rows_read", "accepted", "ignored", "duplicates", "rejected", "songs", "listeners", "events")
SETTINGS = ("sequences.buckets=16", "sequences.max_history=40", "sequences.row_group_events=5000")


def plays(day: dt.date, number: int) -> pa.Table:
    """A file of a landing day: repeated rows, late ones, and one in fifty broken."""
    rng = np.random.default_rng([day.toordinal(), number])
    user, song = rng.integers(1, 20_000, ROWS), rng.zipf(1.3, ROWS) % 3000
    age = np.where(rng.random(ROWS) < 0.1, rng.integers(0, 3, ROWS), 0)
    broken = rng.random(ROWS) < 0.02
    table = pa.table(
        {
            "user_id": pa.array(user, mask=broken),
            "item_id": song * 10,
            "timestamp": Calendar().day_start(day) - age * 86_400 + rng.integers(0, 86_400, ROWS),
            "play_ms": rng.integers(0, 250_000, ROWS),
            "duration_ms": np.full(ROWS, 200_000),
        }
    )
    return pa.concat_tables([table, table.slice(0, ROWS // 20)])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files in four days."""
    folder = tmp_path_factory.mktemp("cluster") / "logs"
    for day in DAYS:
        (folder / f"ds={day}").mkdir(parents=True)
        for number in range(FILES):
            pq.write_table(plays(day, number), folder / f"ds={day}" / f"part-{number}.parquet")
    return folder


def overrides(logs: Path, workspace: Path) -> list[str]:
    return [f"workspace={workspace}", f"logs.path={logs}", *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(spark: Any, logs: Path) -> "Published":
    """The day as one machine makes it, in one process."""
    workspace = logs.parent / "undisturbed"
    day = open_day(load_config(environment={}, overrides=overrides(logs, workspace)), DS)
    return Published.of(workspace, run_stage(day, "sessionize", sessionize.run))


@dataclass
class Published:
    """What a run left behind, in a form that does not depend on which task wrote what into which file."""

    counts: dict[str, Any]
    rows: dict[int, pa.Table]  # by bucket
    listeners: list[int]
    songs: pa.Table
    quarantine: pa.Table

    @staticmethod
    def of(workspace: Path, result: dict[str, Any]) -> "Published":
        manifest = read_manifest(f"{workspace}/sequences/ds={DS}")
        rejects = [pq.ParquetFile(file).read() for file in sorted(workspace.glob("quarantine/ds=*/*.parquet"))]
        quarantine = pa.concat_tables(rejects)
        return Published(
            counts={name: result[name] for name in COUNTS},
            rows=rows_by_bucket(manifest),
            listeners=read_item_counts(manifest).tolist(),
            songs=vocabulary.read(f"{workspace}/vocabulary", "int64").table,
            quarantine=quarantine.sort_by([(name, "ascending") for name in quarantine.column_names]),
        )


def rows_by_bucket(manifest: Manifest) -> dict[int, pa.Table]:
    return {file.bucket: manifest.read(file).combine_chunks() for file in manifest.files}


def assert_same(found: Published, expected: Published) -> None:
    assert found.counts == expected.counts
    assert sorted(found.rows) == sorted(expected.rows)
    for bucket, table in expected.rows.items():
        assert found.rows[bucket].equals(table), f"bucket {bucket}"
    assert found.listeners == expected.listeners
    assert found.songs.equals(expected.songs)
    assert found.quarantine.equals(expected.quarantine)


def assert_files_are_as_listed(workspace: Path) -> None:
    """Every listed file is there and whole, and nothing else is: neither half-written files nor a dead task's."""
    folder = workspace / "sequences" / f"ds={DS}"
    manifest = read_manifest(str(folder))
    listed = {manifest.uri_of(layer): layer for file in manifest.files for layer in file.layers}
    for uri, layer in listed.items():
        assert hashlib.sha256(Path(uri).read_bytes()).hexdigest() == layer.sha256, uri
    others = {manifest.uri(name) for name in (manifest.item_counts, manifest.inputs, "_manifest.json")}
    assert {str(file) for file in folder.rglob("*") if file.is_file()} == {*listed, *others}
    assert not list(workspace.rglob("staging"))


@pytest.fixture
def spark_home(tmp_path: Path) -> Path:
    """The folder `local-cluster` finds Spark in and writes its executors' logs to: links to pip's, as in the image."""
    import pyspark

    home = tmp_path / "spark"
    home.mkdir()
    for name in ("bin", "jars", "python"):
        (home / name).symlink_to(Path(pyspark.__file__).parent / name)
    return home


@contextlib.contextmanager
def on_two_executors(logs: Path, workspace: Path, spark_home: Path) -> Iterator[subprocess.Popen[str]]:
    """`fuxi sessionize` on two executors of one core each, with Spark's own record of events beside the workspace."""
    events = workspace.parent / "events"
    events.mkdir()
    options = {
        "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": str(events),
    }
    settings = [
        *overrides(logs, workspace),
        "cluster.spark_master=local-cluster[2,1,1024]",
        f"cluster.spark_options={json.dumps(options)}",
    ]
    command = [sys.executable, "-m", "jobs.cli", "sessionize", "--ds", str(DS)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "SPARK_HOME": str(spark_home)}
    with (workspace.parent / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=workspace.parent, env=environment, stdout=-1, stderr=errors, text=True)
        try:
            yield process
        finally:
            for child in [*psutil.Process().children(recursive=True)]:
                if child.pid == process.pid or process.pid in {parent.pid for parent in child.parents()}:
                    child.kill()
            process.wait()


def finish(process: subprocess.Popen[str], workspace: Path) -> Published:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (workspace.parent / "stderr").read_text()[-3000:]
    return Published.of(workspace, json.loads(output))


def tasks_of(workspace: Path) -> list[dict[str, Any]]:
    """Every attempt of a task as Spark recorded its end."""
    files = [file for file in (workspace.parent / "events").rglob("*") if file.is_file() and file.stat().st_size]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["Event"] == "SparkListenerTaskEnd"]


def test_a_cluster_publishes_what_one_machine_publishes(
    tmp_path: Path, logs: Path, spark_home: Path, undisturbed: Published
) -> None:
    workspace = tmp_path / "workspace"
    with on_two_executors(logs, workspace, spark_home) as process:
        found = finish(process, workspace)
    assert_same(found, undisturbed)
    assert_files_are_as_listed(workspace)
    assert {task["Task Info"]["Executor ID"] for task in tasks_of(workspace)} == {"0", "1"}


def executors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(argument.endswith("CoarseGrainedExecutorBackend") for argument in child.cmdline()):
                found.append(child)
    return found


def open_files(executor: psutil.Process) -> list[str]:
    """What an executor's Python workers are reading or writing."""
    found = []
    for worker in executor.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [file.path for file in worker.open_files()]
    return found


def kill_at_work(process: subprocess.Popen[str], folder: Path) -> None:
    """SIGKILL to an executor that has a file of the folder open."""
    known: list[psutil.Process] = []
    while process.poll() is None:
        time.sleep(0.01)
        known = known if len(known) == 2 else executors(process)
        for executor in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(Path(file).is_relative_to(folder) for file in open_files(executor)):
                    executor.kill()
                    return
    pytest.fail("the stage was over before an executor could be killed")


@pytest.mark.parametrize("stage", ["reading", "building"])
def test_an_executor_killed_at_work_changes_nothing(
    stage: str, tmp_path: Path, logs: Path, spark_home: Path, undisturbed: Published
) -> None:
    """Killed with a half-written run of the shuffle, or with a half-written shard."""
    workspace = tmp_path / "workspace"
    folder = {"reading": workspace / "runs", "building": workspace / "sequences"}[stage]
    with on_two_executors(logs, workspace, spark_home) as process:
        kill_at_work(process, folder)
        assert not (workspace / "sequences" / f"ds={DS}" / "_manifest.json").exists()
        found = finish(process, workspace)
    ends = [(task["Stage ID"], task["Task End Reason"]["Reason"]) for task in tasks_of(workspace)]
    assert (["reading", "building"].index(stage), "ExecutorLostFailure") in ends
    assert_same(found, undisturbed)
    time.sleep(1)  # for a Python worker that outlives its executor
    assert_files_are_as_listed(workspace)
