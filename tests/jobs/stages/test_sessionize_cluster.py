"""`fuxi sessionize` on executors (`local-cluster`): what one machine publishes, also when an executor is killed."""

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from pipelines.digests import read_digests
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest, content_digest, read_item_counts, read_manifest

DAYS = [dt.date(2026, 3, 2) + dt.timedelta(days=n) for n in range(4)]
DS = DAYS[-1] + dt.timedelta(days=1)
BASE = DAYS[-2] + dt.timedelta(days=1)
HELD = {"spark.python.daemon.module": "tests.held_workers"}
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


@pytest.fixture(scope="module")
def two_days(spark: Any, logs: Path) -> "dict[dt.date, Published]":
    """A day, and the next one laid over it, as one machine makes them."""
    workspace, found = logs.parent / "two-days", {}
    for ds in (BASE, DS):
        day = open_day(load_config(environment={}, overrides=overrides(logs, workspace)), ds)
        found[ds] = Published.of(workspace, run_stage(day, "sessionize", sessionize.run), ds)
    return found


@dataclass
class Published:
    """What a run left behind, in a form that does not depend on which task wrote what into which file."""

    counts: dict[str, Any]
    rows: dict[int, pa.Table]  # by bucket
    listeners: list[int]
    songs: pa.Table
    quarantine: pa.Table
    digest: str  # of all shards, to the bit

    @staticmethod
    def of(workspace: Path, result: dict[str, Any], ds: dt.date = DS) -> "Published":
        manifest = read_manifest(f"{workspace}/sequences/ds={ds}")
        rejects = [pq.ParquetFile(file).read() for file in sorted(workspace.glob("quarantine/ds=*/*.parquet"))]
        quarantine = pa.concat_tables(rejects)
        return Published(
            counts={name: result[name] for name in COUNTS},
            rows=rows_by_bucket(manifest),
            listeners=read_item_counts(manifest).tolist(),
            songs=vocabulary.read(f"{workspace}/vocabulary", "int64").table,
            quarantine=quarantine.sort_by([(name, "ascending") for name in quarantine.column_names]),
            digest=content_digest(manifest),
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
    assert found.digest == expected.digest


def assert_files_are_as_listed(workspace: Path, ds: dt.date = DS) -> None:
    """Every listed file is there and whole, and nothing else is: neither half-written files nor a dead task's."""
    folder = workspace / "sequences" / f"ds={ds}"
    manifest = read_manifest(str(folder))
    listed = {manifest.uri_of(layer): layer for file in manifest.files for layer in file.layers}
    own = {uri for uri in listed if Path(uri).is_relative_to(folder)}
    for uri, layer in listed.items():
        assert hashlib.sha256(Path(uri).read_bytes()).hexdigest() == layer.sha256, uri
    others = {manifest.uri(name) for name in (manifest.item_counts, manifest.inputs, "_manifest.json")}
    assert {str(file) for file in folder.rglob("*") if file.is_file()} == {*own, *others}
    assert not list(workspace.rglob("staging")) and not list(workspace.rglob("*.tmp"))
    rejects = workspace / "quarantine" / f"ds={ds}"
    noted = read_digests(str(rejects))
    assert {str(file) for file in rejects.glob("*.parquet")} == set(noted) != set()
    for uri, digest in noted.items():
        assert hashlib.sha256(Path(uri).read_bytes()).hexdigest() == digest.sha256, uri


@pytest.fixture
def spark_home(tmp_path: Path) -> Path:
    """The folder `local-cluster` finds Spark in and writes its executors' logs to: links to pip's, as in the image."""
    import pyspark

    home = tmp_path / "spark"
    home.mkdir()
    for name in ("bin", "jars", "python"):
        (home / name).symlink_to(Path(pyspark.__file__).parent / name)
    return home


AT_ONCE = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.1",
    "spark.speculation.minTaskRuntime": "10ms",
}
"""Any task that takes longer than others is begun a second time on the other executor."""


@dataclass
class Cluster:
    """`fuxi sessionize` on two executors of one core each, with Spark's own record of events beside the workspace."""

    logs: Path
    workspace: Path
    spark_home: Path
    options: dict[str, str] = field(default_factory=dict)
    ds: dt.date = DS
    master: str = "local-cluster[2,1,1024]"

    @property
    def held(self) -> Path:
        """The folder of `tests.held_workers`."""
        return self.workspace.parent / f"held-{self.ds}"

    @property
    def events(self) -> Path:
        """Where Spark writes what happened."""
        return self.workspace.parent / f"events-{self.ds}"

    @property
    def stderr(self) -> Path:
        """What the command wrote to standard error."""
        return self.workspace.parent / f"stderr-{self.ds}"

    def __enter__(self) -> "Cluster":
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
        self.held.mkdir()
        self.events.mkdir()
        options = {
            "spark.executor.memory": "512m",
            "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": str(self.events),
            "spark.executorEnv.HELD_WORKERS": str(self.held),
            "spark.executorEnv.PYTHONPATH": path,
            **self.options,
        }
        settings = [
            *overrides(self.logs, self.workspace),
            f"cluster.spark_master={self.master}",
            f"cluster.spark_options={json.dumps(options)}",
        ]
        command = [sys.executable, "-m", "jobs.cli", "sessionize", "--ds", str(self.ds)]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, "SPARK_HOME": str(self.spark_home), "PYTHONPATH": path}
        with self.stderr.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.workspace.parent, env=environment, stdout=-1, stderr=errors, text=True
            )
        return self

    def __exit__(self, *error: object) -> None:
        for child in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """The command's process, if it runs, and all below it."""
        try:
            command = psutil.Process(self.process.pid)
            return [*command.children(recursive=True), command]
        except psutil.NoSuchProcess:
            return []

    def executor_at(self, point: str) -> psutil.Process:
        """The executor whose Python worker waits at a point of its work."""
        place, until = self.held / f"{point}.at", time.monotonic() + 120
        while not place.is_symlink():
            assert self.process.poll() is None, self.stderr.read_text()[-3000:]
            assert time.monotonic() < until, f"no worker came to {point}"
            time.sleep(0.02)
        return next(parent for parent in psutil.Process(int(place.readlink().name)).parents() if is_executor(parent))

    def go_on(self, point: str) -> None:
        """Let the worker go on that waits at a point."""
        (self.held / f"{point}.on").touch()

    def finish(self) -> Published:
        """What is published when the command has ended."""
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, self.stderr.read_text()[-3000:]
        return Published.of(self.workspace, json.loads(output), self.ds)

    def recorded(self, event: str) -> list[dict[str, Any]]:
        """Everything of a kind that Spark recorded."""
        files = [file for file in self.events.rglob("*") if file.is_file() and file.stat().st_size]
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["Event"] == f"SparkListener{event}"]

    def tasks(self) -> list[tuple[str, str, str]]:
        """Every end of an attempt of a task: the stage, the executor, and the reason."""
        stages = ["reading", "building"]
        return [
            (stages[end["Stage ID"]], end["Task Info"]["Executor ID"], end["Task End Reason"]["Reason"])
            for end in self.recorded("TaskEnd")
        ]

    def removed(self) -> dict[str, str]:
        """The executors that left, and why."""
        return {one["Executor ID"]: one["Removed Reason"] for one in self.recorded("ExecutorRemoved")}

    def reasons(self) -> set[tuple[str, str]]:
        """How attempts of tasks of each stage ended."""
        return {(stage, reason) for stage, _, reason in self.tasks()}


@pytest.fixture
def two_hosts(spark_home: Path) -> Iterator[str]:
    """A cluster whose two workers have addresses of their own: speculation never repeats a task on the same host."""
    environment = {**os.environ, "SPARK_HOME": str(spark_home), "SPARK_DAEMON_MEMORY": "256m"}
    with contextlib.ExitStack() as stack:

        def start(kind: str, host: str, *arguments: str) -> Path:
            log = stack.enter_context((spark_home / f"{kind}-{host}").open("w"))
            java = f"org.apache.spark.deploy.{kind.lower()}.{kind}"
            options = ("--host", host, "--port", "0", "--webui-port", "0", *arguments)
            command = [spark_home / "bin" / "spark-class", java, *options]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Path(log.name)

        def url(log: Path) -> str:
            return found[0] if (found := re.findall(r"spark://127[.0-9]+:\d+", log.read_text())) else ""

        log = start("Master", "127.0.0.1")
        wait_for(lambda: url(log))
        for host in ("127.0.0.2", "127.0.0.3"):
            start("Worker", host, "--cores", "1", "--memory", "1g", "--work-dir", f"{spark_home}/work", url(log))
        wait_for(lambda: log.read_text().count("Registering worker") == 2)
        yield url(log)


def wait_for(done: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)


def is_executor(process: psutil.Process) -> bool:
    return any(argument.endswith("CoarseGrainedExecutorBackend") for argument in process.cmdline())


def signal_all(executor: psutil.Process, number: signal.Signals) -> None:
    """To an executor and its Python workers."""
    for process in [*executor.children(recursive=True), executor]:
        process.send_signal(number)


def test_a_cluster_publishes_what_one_machine_publishes(
    tmp_path: Path, logs: Path, spark_home: Path, undisturbed: Published
) -> None:
    with Cluster(logs, tmp_path / "workspace", spark_home) as cluster:
        found = cluster.finish()
    assert_same(found, undisturbed)
    assert_files_are_as_listed(cluster.workspace)
    assert {executor for _, executor, _ in cluster.tasks()} == {"0", "1"}


@pytest.mark.parametrize("stage", ["reading", "building"])
def test_an_executor_killed_at_work_changes_nothing(
    stage: str, tmp_path: Path, logs: Path, spark_home: Path, undisturbed: Published
) -> None:
    """Killed with a half-written run of the shuffle, or with a half-written shard."""
    with Cluster(logs, tmp_path / "workspace", spark_home, HELD) as cluster:
        cluster.go_on({"reading": "building", "building": "reading"}[stage])
        cluster.executor_at(stage).kill()
        assert not (cluster.workspace / "sequences" / f"ds={DS}" / "_manifest.json").exists()
        cluster.go_on(stage)
        found = cluster.finish()
    assert (stage, "ExecutorLostFailure") in cluster.reasons()
    assert_same(found, undisturbed)
    assert_files_are_as_listed(cluster.workspace)


@pytest.mark.slow  # two days on executors of their own: two minutes on two busy cores
def test_stopped_repeated_and_killed_executors_change_neither_a_day_nor_its_increment(
    tmp_path: Path, logs: Path, spark_home: Path, two_hosts: str, two_days: "dict[dt.date, Published]"
) -> None:
    """A task of a stopped executor is repeated by speculation; it goes on after its stage, and the other is killed."""
    options = HELD | AT_ONCE | {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    with Cluster(logs, tmp_path / "workspace", spark_home, options, BASE, two_hosts) as cluster:
        stopped = cluster.executor_at("reading")
        signal_all(stopped, signal.SIGSTOP)
        cluster.go_on("reading")
        killed = cluster.executor_at("building")
        assert killed.pid != stopped.pid
        signal_all(stopped, signal.SIGCONT)
        killed.kill()
        cluster.go_on("building")
        found = cluster.finish()
    assert {("reading", "TaskKilled"), ("building", "ExecutorLostFailure")} <= cluster.reasons()
    assert_same(found, two_days[BASE])
    assert_files_are_as_listed(cluster.workspace, BASE)
    with Cluster(logs, cluster.workspace, spark_home, options, DS, two_hosts) as cluster:
        cluster.go_on("reading")
        stopped = cluster.executor_at("building")
        signal_all(stopped, signal.SIGSTOP)
        cluster.go_on("building")
        found = cluster.finish()  # the task that is stopped is repeated, and never ends
    assert_same(found, two_days[DS])
    assert_files_are_as_listed(cluster.workspace)


@pytest.mark.slow  # executors of their own
def test_an_executor_that_has_to_leave_ends_its_task_and_gets_no_other(
    tmp_path: Path, logs: Path, spark_home: Path, undisturbed: Published
) -> None:
    """SIGPWR is how a spot instance, or Kubernetes by Spark's `decom.sh`, tells an executor to leave."""
    options = HELD | {"spark.decommission.enabled": "true"}
    with Cluster(logs, tmp_path / "workspace", spark_home, options) as cluster:
        cluster.go_on("building")
        leaving = cluster.executor_at("reading")
        leaving.send_signal(signal.SIGPWR)
        log = Path(leaving.cwd()) / "stderr"
        wait_for(
            lambda: "decommissionExecutor finished" in log.read_text() or "Decommission executor" in log.read_text()
        )
        cluster.go_on("reading")
        found = cluster.finish()
    assert cluster.reasons() == {("reading", "Success"), ("building", "Success")}
    [left] = [executor for executor, why in cluster.removed().items() if "ecommission" in why]
    assert ("building", left) not in {(stage, executor) for stage, executor, _ in cluster.tasks()}
    assert_same(found, undisturbed)
    assert_files_are_as_listed(cluster.workspace)
