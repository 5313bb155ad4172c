"""What tests share: one Spark session, one Ray instance, one S3 server, all on loopback; two serving days."""

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.lib.s3_server import environment, s3_server

if TYPE_CHECKING:
    from fuxi_beta.data.batches import Batch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


NEED_TWO_DAYS = {
    f"tests/{name}.py"
    for name in ("docs/test_output", "docs/test_workspace", "e2e/test_bits", "e2e/test_chaos", "e2e/test_two_days")
}
"""Files that share one process, which makes the two days once."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay in one process, and so do those of all files that need the two days."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "two days" if file in NEED_TWO_DAYS else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def engines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is interrupted in a test does not end the Spark session and the Ray instance of all tests."""
    from pipelines import leases

    monkeypatch.setattr(leases, "_at_stop", [])


@pytest.fixture(scope="session")
def spark():
    """The Spark session that `jobs` starts, on all local cores."""
    from jobs.config import ClusterConfig
    from jobs.runtime.engines import spark_session

    session = spark_session(ClusterConfig())  # type: ignore[call-arg]
    yield session
    session.stop()


@pytest.fixture(scope="module")
def ray_local():
    """A Ray instance as `jobs` starts it; one module's, because other modules build clusters of their own."""
    from jobs.config import ClusterConfig
    from jobs.runtime.engines import ray_session

    ray = ray_session(ClusterConfig())  # type: ignore[call-arg]
    yield ray
    ray.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server (moto) on loopback with an empty bucket; yields `s3://workspace-test`."""
    import boto3

    with s3_server() as endpoint:
        for name, value in environment(endpoint, key="test", secret="test").items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="workspace-test")
        yield "s3://workspace-test"


@pytest.fixture
def make_batch() -> Callable[..., "Batch"]:
    """A function that draws a random jagged batch of given lengths; some neighbours share a second."""

    import torch

    from fuxi_beta.data.batches import Batch

    def make(lengths: list[int], *, songs: int = 20, seed: int = 0, target_share: float = 1.0) -> "Batch":
        random = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        total = int(offsets[-1])
        gaps = random.choice([0, 1, 60, 4_000, 90_000, 5_000_000], total)
        timestamp = np.concatenate([[0], 1_700_000_000 + np.cumsum(gaps)])[1:]
        next_timestamp = timestamp + random.choice([0, 1, 30, 86_400], total)
        items, targets = random.integers(1, songs + 1, total), random.integers(1, songs + 1, total)
        targets[random.random(total) >= target_share] = 0
        seen = [np.unique(items[offsets[row] : offsets[row + 1]]) for row in range(len(lengths))]
        arrays = {
            "offsets": offsets,
            "item_index": items,
            "timestamp": timestamp,
            "next_timestamp": next_timestamp,
            "target": targets,
            "sample": np.arange(len(lengths)) + 7,
            "seen_offsets": np.concatenate([[0], np.cumsum([len(songs) for songs in seen])]),
            "seen_items": np.concatenate([*seen, np.zeros(0)]),
        }
        return Batch(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()})

    return make


PLANTED = ("planted-in-an-option", "planted-in-the-environment")
"""Secrets that the two days are run with."""


@dataclass
class TwoDays:
    """A workspace after two serving days (2026-01-26 and the next), and what was seen on the way."""

    config: Any  # jobs.config.Config
    results: list[Any]  # of jobs.daily.DayResult
    listeners: int
    day_one_before_day_two: list[tuple[Any, ...]]
    after_day_one: Path  # a copy of the workspace of then
    told: dict[str, list[str]] = field(default_factory=dict)  # progress of each stage
    written: list[Path] = field(default_factory=list)  # folders that the days wrote to
    lineage: Path = Path()  # the events that the days told

    @property
    def root(self) -> Path:
        return Path(self.config.workspace)

    def run(self, ds: dt.date, **options: Any) -> Any:
        from jobs.daily import run_day
        from jobs.day import open_day

        return run_day(open_day(self.config, ds, **options))

    @staticmethod
    def rows_of(query: str) -> list[tuple[Any, ...]]:
        """What DuckDB answers."""
        import duckdb

        return duckdb.connect().execute(query).fetchall()

    def live_files(self, table: str) -> list[str]:
        """Replay a Delta log with DuckDB: the files added and not removed."""
        log = sorted((self.root / table / "_delta_log").glob("*.json"))
        rows = self.rows_of(
            f"select add, remove from read_json({[str(f) for f in log]!r}, format='newline_delimited', "
            "columns={'add': 'JSON', 'remove': 'JSON'}) "
        )
        live: dict[str, None] = {}
        for add, remove in rows:
            if remove:
                live.pop(json.loads(remove)["path"], None)
            if add:
                live[json.loads(add)["path"]] = None
        return [str(self.root / table / path.replace("%3D", "=")) for path in live]

    def lists(self, ds: dt.date) -> list[tuple[Any, ...]]:
        """(user_id, [item_id], source, model_version) of one ds, read by DuckDB."""
        files = [file for file in self.live_files("recommendations") if f"ds={ds}" in file]
        assert files, f"no live files of {ds}"
        query = (
            "select user_id, [x.item_id for x in items], source, model_version "
            f"from read_parquet({files!r}) order by user_id"
        )
        return self.rows_of(query)


@pytest.fixture(scope="session")
def two_days(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> TwoDays:
    """Synthetic logs and two serving days of them with every real component. Tests that write run days again only."""
    import ray
    from ray._private.worker import global_worker

    from jobs.config import LineageConfig, load_config
    from pipelines import progress
    from pipelines.synthetic import SyntheticConfig, generate

    root = tmp_path_factory.mktemp("two-days") / "workspace"
    first, listeners = dt.date(2026, 1, 5), 250
    logs = SyntheticConfig(
        listeners=listeners, songs=400, artists=40, plays_per_day=25, first_day=first, days=23, seed=5
    )
    generate(logs, f"{root}/logs")
    overrides = [
        f"workspace={root}",
        f"logs.path={root}/logs/plays",
        f"logs.catalogue={root}/logs/catalogue",
        "sequences.buckets=4",
        "sequences.max_history=300",
        "model.dim=32",
        "train.epochs=12",
        "train.batch_size=16",
        "train.lr=0.01",
        "train.item_optimizer=adamw",
        "train.warm_start_epochs=2",
        "train.min_listeners=2",
        "gates.serve_baseline=false",  # nor is it to be better than item-kNN
        "gates.margin=0.5",  # a model this small may be some per cent worse on the second day, which is to have another
        "cluster.spark_master=local[2]",
        f"cluster.spark_options={{spark.hadoop.fs.s3a.secret.key: {PLANTED[0]}}}",
    ]
    day_one, day_two = first + dt.timedelta(21), first + dt.timedelta(22)
    made = TwoDays(load_config(overrides=overrides, environment={}), [], listeners, [], root.with_name("after-day-one"))
    made.lineage = root.with_name("lineage.jsonl")
    lineage = LineageConfig(openlineage=True, namespace="fuxi")
    plain, made.config = made.config, made.config.model_copy(update={"lineage": lineage})
    stage = [""]

    def hear(event: str, text: str) -> None:
        stage[0] = {"begun": text, "finished": ""}.get(event, stage[0])
        made.told.setdefault(stage[0], []).append(text)

    try:
        with progress.listening(hear), pytest.MonkeyPatch.context() as environment:
            environment.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED[1])
            for name, value in {"TYPE": "file", "LOG_FILE_PATH": str(made.lineage), "APPEND": "true"}.items():
                environment.setenv(f"OPENLINEAGE__TRANSPORT__{name}", value)
            made.results.append(made.run(day_one))
            made.day_one_before_day_two += made.lists(day_one)
            shutil.copytree(root, made.after_day_one)
            made.results.append(made.run(day_two))
            made.config = plain
        assert global_worker.node
        made.written += [root, Path(global_worker.node.get_session_dir_path())]
    finally:
        ray.shutdown()  # other modules build clusters of their own
    return made
