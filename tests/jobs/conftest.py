"""A small deployment with real shards, vocabulary, registry and models, but no Spark: what the serving stages read."""

import datetime as dt
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.config import Config, load_config
from jobs.day import Day, open_day
from pipelines import storage
from pipelines.histories import vocabulary
from pipelines.histories.buckets import by_bucket
from pipelines.histories.publish import BuildSpec, publish_shards, write_bases
from pipelines.histories.shards import Manifest
from pipelines.schema import id_type

from ..small_histories import histories_of

SONGS, LISTENERS, BUCKETS = 120, 40, 4
DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)


@dataclass
class Deployment:
    """A workspace and how to fill it. Song index i has the id `1000 + 7 i` (or its text)."""

    config: Config
    item_id_type: str = "int64"
    user_id_type: str = "int64"
    listeners: int = LISTENERS
    songs: int = SONGS
    histories: dict[Any, list[tuple[int, int, int]]] = field(default_factory=dict)

    def day(self, ds: dt.date) -> Day:
        return open_day(self.config, ds)

    def item_id(self, index: int) -> Any:
        number = 1000 + 7 * index
        return number if self.item_id_type == "int64" else f"{number}"

    def user(self, number: int) -> Any:
        return number if self.user_id_type == "int64" else f"user-{number:05d}"

    def make_histories(self, until: dt.date) -> dict[Any, list[tuple[int, int, int]]]:
        """user -> [(song index, timestamp, completion)], oldest first; about ten plays in the last four weeks."""
        random = np.random.default_rng(7)
        end = self.day(until).calendar.day_start(until)
        made = {}
        for number in range(1, self.listeners + 1):
            count = int(random.integers(8, 16))
            times = np.sort(end - random.integers(1, 28 * 86_400, count))
            songs = 1 + (random.zipf(1.3, count) - 1) % self.songs
            completion = np.where(random.random(count) < 0.1, 10, 100)
            made[self.user(number)] = [
                (int(s), int(t), int(c)) for s, t, c in zip(songs, times, completion, strict=True)
            ]
        return made

    def sessionized(self, ds: dt.date, histories: dict[Any, list[tuple[int, int, int]]] | None = None) -> Manifest:
        """Publish shards, vocabulary and run record of a ds, as the first stage would."""
        day = self.day(ds)
        self.histories = histories = histories if histories is not None else self.make_histories(ds)
        ids = pa.array(sorted(self.item_id(i) for i in range(1, self.songs + 1)), id_type(self.item_id_type))
        songs = vocabulary.append(day.workspace.vocabulary, ids, ds=ds, item_id_type=self.item_id_type, run_id="test")
        if not day.has_record:
            day.new_record(vocabulary_version=songs.version)
        spec = BuildSpec(
            folder=day.workspace.sequences(ds),
            ds=ds,
            data_end=day.calendar.day_start(ds),
            vocabulary_size=self.songs,
            vocabulary_version=songs.version or 0,
            run_id=day.record.run_id,
            attempt="test",
            buckets=BUCKETS,
            row_group_events=80,  # several a file
            user_id_type=self.user_id_type,
            item_id_type=self.item_id_type,
        )
        stored = histories_of(histories, user_id_type=self.user_id_type)
        manifest = publish_shards(spec, write_bases(spec, by_bucket(stored, BUCKETS)))
        day.finish("sessionize", {}, 0.0)
        return manifest

    def export(self, ds: dt.date, *, seed: int = 1, known: int | None = None, parent: str | None = None) -> str:
        """An untrained model of a ds, as the train stage leaves it in the run folder. `known`: its songs.

        parent: the version that it is said to have started from.
        """
        import torch

        from fuxi_beta.config import ModelConfig
        from fuxi_beta.models.fuxi_beta import FuXiBeta
        from fuxi_beta.training.checkpoint import TrainedModel, save_export

        day = self.day(ds)
        known = known or self.songs
        torch.manual_seed(seed)
        config = ModelConfig(dim=8, layers=1, max_history=20)
        candidates = torch.zeros(known + 5, dtype=torch.bool)
        candidates[1 : known + 1] = True
        trained = TrainedModel(
            model=FuXiBeta(config).eval(),
            model_config=config,
            train_config=self.config.train,
            item_vectors=torch.randn(known + 5, 8),
            candidates=candidates,
            vocabulary_size=known,
            ds=str(ds),
            data_end=day.calendar.day_start(ds - dt.timedelta(days=1)),
            request_hour=self.config.serving.request_hour,
            metadata={"warm_started_from": parent},
        )
        folder = f"{day.workspace.run(ds)}/export-{seed}"
        with tempfile.TemporaryDirectory() as scratch:
            save_export(scratch, trained)
            storage.upload_folder(scratch, folder)
        return folder

    def trained(
        self, ds: dt.date, *, seed: int = 1, run_key: str = "", known: int | None = None, parent: str | None = None
    ) -> str:
        """Register a model of a ds and leave the marker of train; returns its version. parent: as of `export`."""
        from jobs.registry import versions

        day = self.day(ds)
        if not day.has_record:
            day.new_record()
        run_key = run_key or f"{ds}-{seed}"
        folder = self.export(ds, seed=seed, known=known, parent=parent)
        run = versions.log_training(day, {"dim": 8}, [[1, 5.0], [2, 4.0]], run_key=run_key)
        version = versions.register_challenger(day, folder, mlflow_run_id=run, run_key=run_key)
        day.finish("train", {"model_version": version, "export": folder}, 0.0)
        return version

    def choose(self, ds: dt.date, version: str | None, *, baseline: str | None = None) -> None:
        """Leave what promote leaves: the chosen version and baseline in the run record, and its marker."""
        self.day(ds).update_record(chosen_model=version, chosen_baseline=baseline)
        self.day(ds).finish("promote", {"chosen": version, "baseline": baseline}, 0.0)

    def published(
        self,
        ds: dt.date,
        histories: dict[Any, list[tuple[int, int, int]]] | None = None,
        *,
        baseline: str | None = None,
    ) -> None:
        """Publish lists of an untrained model, made as the Ray tasks make them but in this process.

        baseline: serves in its place.
        """
        from jobs.serving.make_lists import default_part, make_part
        from jobs.stages.recommend import list_job
        from jobs.tables import recommendations

        self.sessionized(ds, histories)
        self.choose(ds, self.trained(ds), baseline=baseline)
        job = list_job(self.day(ds))
        table = recommendations.open_lists(self.day(ds).workspace)
        parts = [default_part(job), *(make_part(job, file) for file in job.manifest.files)]
        recommendations.commit(table, ds, parts, key=1, metadata={})

    def evaluated(self, ds: dt.date, **ndcg: float) -> None:
        """Leave the marker of evaluate with an NDCG@30 for each recommender."""
        metrics = {name: {"all": {"ndcg_30": value, "hr_30": value}} for name, value in ndcg.items()}
        self.day(ds).finish("evaluate", {"protocol": "next_day", "metrics": metrics}, 0.0)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database MLflow makes on first use, made once: its migrations take seconds."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("registry") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def deployment(tmp_path: Path, empty_registry: Path) -> Callable[..., Deployment]:
    """Makes deployments below the test's folder: `deployment("recommend.k=5", item_id_type="string")`."""

    def make(*overrides: str, folder: str = "workspace", workspace: str = "", **values: Any) -> Deployment:
        (tmp_path / folder).mkdir()
        shutil.copy(empty_registry, tmp_path / folder / "mlflow.db")
        types = [f"sequences.{name}={values[name]}" for name in ("item_id_type", "user_id_type") if name in values]
        where = [
            f"workspace={workspace or tmp_path / folder}",
            f"sequences.buckets={BUCKETS}",
            "cluster.spark_master=local[2]",
        ]
        return Deployment(load_config(overrides=[*where, *types, *overrides], environment={}), **values)

    return make
