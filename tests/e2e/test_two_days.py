"""Synthetic logs, two serving days with every real component, and the table read back by another engine."""

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jobs.config import Config, load_config
from jobs.daily import DayResult, run_day
from jobs.day import open_day
from pipelines.histories.shards import read_manifest
from pipelines.synthetic import SyntheticConfig, generate

FIRST = dt.date(2026, 1, 5)
DAY_ONE, DAY_TWO = FIRST + dt.timedelta(21), FIRST + dt.timedelta(22)
LISTENERS = 250


@dataclass
class TwoDays:
    """A workspace after two days, and what was seen on the way."""

    config: Config
    results: list[DayResult]
    day_one_before_day_two: list[tuple[Any, ...]]

    @property
    def root(self) -> Path:
        return Path(self.config.workspace)

    def run(self, ds: dt.date, **options: Any) -> DayResult:
        return run_day(open_day(self.config, ds, **options))


def rows_of(query: str) -> list[tuple[Any, ...]]:
    """What DuckDB answers."""
    return duckdb.connect().execute(query).fetchall()


def live_files(table: Path) -> list[str]:
    """Replay a Delta log with DuckDB: the files added and not removed."""
    log = sorted((table / "_delta_log").glob("*.json"))
    rows = rows_of(
        f"select add, remove from read_json({[str(f) for f in log]!r}, format='newline_delimited', "
        "columns={'add': 'JSON', 'remove': 'JSON'}) "
    )
    live: dict[str, None] = {}
    for add, remove in rows:
        if remove:
            live.pop(json.loads(remove)["path"], None)
        if add:
            live[json.loads(add)["path"]] = None
    return [str(table / path.replace("%3D", "=")) for path in live]


def read_lists(root: Path, ds: dt.date) -> list[tuple[Any, ...]]:
    """(user_id, [item_id], source, model_version) of one ds, read by DuckDB."""
    files = [file for file in live_files(root / "recommendations") if f"ds={ds}" in file]
    assert files, f"no live files of {ds}"
    query = (
        "select user_id, [x.item_id for x in items], source, model_version "
        f"from read_parquet({files!r}) order by user_id"
    )
    return rows_of(query)


@pytest.fixture(scope="module")
def two_days(tmp_path_factory: pytest.TempPathFactory, spark: Any, ray_local: Any) -> TwoDays:
    root = tmp_path_factory.mktemp("two-days") / "workspace"
    logs = SyntheticConfig(
        listeners=LISTENERS, songs=400, artists=40, plays_per_day=25, first_day=FIRST, days=23, seed=5
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
        "cluster.spark_master=local[2]",
    ]
    config = load_config(overrides=overrides, environment={})
    first = run_day(open_day(config, DAY_ONE))
    before = read_lists(root, DAY_ONE)
    second = run_day(open_day(config, DAY_TWO))
    return TwoDays(config, [first, second], before)


def test_both_days_are_published_without_a_failure(two_days: TwoDays) -> None:
    assert [result.failures for result in two_days.results] == [{}, {}]


@pytest.mark.parametrize("ds", [DAY_ONE, DAY_TWO])
def test_every_active_listener_has_exactly_one_list_of_thirty_unheard_songs(two_days: TwoDays, ds: dt.date) -> None:
    rows = read_lists(two_days.root, ds)
    manifest = read_manifest(str(two_days.root / "sequences" / f"ds={ds}"))
    vocabulary = dict(
        rows_of(f"select item_index, item_id from read_parquet({live_files(two_days.root / 'vocabulary')!r})")
    )
    files = [manifest.uri_of(layer) for file in manifest.files for layer in file.layers]
    songs = "select user_id, list_concat(item_index, heard_before) as songs"
    query = f"select user_id, flatten(list(songs)) from ({songs} from read_parquet({files!r})) group by user_id"
    heard = {user: {vocabulary[index] for index in indices} for user, indices in rows_of(query)}
    assert sorted(heard) == [row[0] for row in rows if row[0] is not None]
    assert sum(row[0] is None for row in rows) == 1
    assert len(heard) > LISTENERS * 0.8
    for user, items, source, _ in rows:
        assert len(items) == len(set(items)) <= 30
        assert not set(items) & heard.get(user, set()), f"{user} has heard songs of the list"
        assert set(items) <= set(vocabulary.values())
        assert len(items) == 30 or source == "popular" or len(heard[user]) > len(vocabulary) * 0.5


def test_day_two_leaves_the_partition_of_day_one_as_it_was(two_days: TwoDays) -> None:
    assert read_lists(two_days.root, DAY_ONE) == two_days.day_one_before_day_two


def test_day_two_merges_only_the_new_day_and_warm_starts_from_the_first_champion(two_days: TwoDays) -> None:
    first, second = (result.stages for result in two_days.results)
    assert second["sessionize"]["rows_read"] < first["sessionize"]["rows_read"] / 5
    assert read_manifest(str(two_days.root / "sequences" / f"ds={DAY_TWO}")).parent == DAY_ONE
    assert second["train"]["warm_started_from"] == first["promote"]["chosen"]


def test_the_dirt_of_the_logs_is_quarantined_with_reasons(two_days: TwoDays) -> None:
    rejected = two_days.results[0].stages["sessionize"]["rejected"]
    quarantine = str(two_days.root / "quarantine" / f"ds={DAY_ONE}" / "*.parquet")
    stored = dict(rows_of(f"select reason, count(*) from read_parquet('{quarantine}') group by 1"))
    assert stored == {reason: count for reason, count in rejected.items() if count}
    assert len(stored) >= 4


def test_the_model_beats_popularity(two_days: TwoDays) -> None:
    metrics = two_days.results[0].stages["evaluate"]["metrics"]
    assert metrics["challenger"]["all"]["ndcg_30"] > metrics["popularity"]["all"]["ndcg_30"]


def test_day_one_run_again_after_day_two_gives_the_lists_of_day_one(two_days: TwoDays) -> None:
    two_days.run(DAY_ONE, force=True)
    assert read_lists(two_days.root, DAY_ONE) == two_days.day_one_before_day_two


def test_running_a_finished_day_again_does_nothing(two_days: TwoDays) -> None:
    result = two_days.run(DAY_TWO)
    assert all(stage["skipped"] for stage in result.stages.values())


def test_the_report_of_each_day_is_there(two_days: TwoDays) -> None:
    for result in two_days.results:
        assert "<html" in Path(result.stages["report"]["uri"]).read_text()
